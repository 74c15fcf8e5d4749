"""Early stopping by hand-made curves: when trials are judged, against what, and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler

from recon_ray.sweeps.config import SweepSection
from recon_ray.sweeps.early_stopping import Curve, EarlyStopping, EpochMeans, read_curves
from recon_ray.sweeps.trial_folders import TrialFolders

VARIED = {"optim.lr": {"grid": [1, 2]}}


def rule(
    name: str,
    *,
    grace: int = 2,
    epochs: int = 9,
    curves: dict[str, Curve] | None = None,
    **more: Any,
) -> EarlyStopping:
    options = SweepSection(space=VARIED, scheduler=name, **more)
    return EarlyStopping(options, grace=grace, epochs=epochs, curves=curves or {})


def flat(value: float, epochs: int = 9) -> Curve:
    return dict.fromkeys(range(1, epochs + 1), value)


def stops(found: EarlyStopping, name: str, values: dict[int, float], epochs: int = 9) -> int:
    """The epoch after which a trial with these reports is stopped, 0 for never."""
    return next((at for at, v in values.items() if found.judge(name, at, v, epochs)), 0)


# --- Median ---------------------------------------------------------------------------------------
def test_nobody_is_judged_within_the_grace_or_at_the_last_epoch() -> None:
    """A rising curve that begins at chance is not ended by it."""
    others = {"a": flat(0.5), "b": flat(0.6), "c": flat(0.7)}
    late = {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.9}
    assert stops(rule("median", grace=2, curves=dict(others)), "x", late) == 2
    assert stops(rule("median", grace=4, curves=dict(others)), "x", late) == 0
    assert stops(rule("median", grace=8, curves=dict(others)), "x", flat(0.1)) == 8
    assert stops(rule("median", grace=8, curves=dict(others)), "x", flat(0.1, 8), epochs=8) == 0


def test_the_median_is_over_the_same_epochs_of_three_others() -> None:
    # Far ahead the others are better, at epoch 3 they are not.
    ahead = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.9, 5: 0.9}
    others = {name: dict(ahead) for name in "abc"}
    found = rule("median", curves=others)
    assert stops(found, "x", {1: 0.1, 2: 0.26, 3: 0.26}) == 0  # median of means over 2 and 3: 0.25
    assert stops(found, "y", {1: 0.1, 2: 0.24, 3: 0.24}) == 3
    assert found.reasons["y"] == (
        "best val/accuracy 0.24 is below 0.25, the median of 4 others up to this epoch"
    )
    assert stops(rule("median", curves={"a": flat(0.9), "b": flat(0.9)}), "x", flat(0.1)) == 0
    assert stops(rule("median", curves=others), "early", {1: 0.5, 2: 0.1, 3: 0.1}) == 0  # its best
    # The median of a, b, c and of what is not there yet at epoch 2.
    short = {"a": flat(0.9), "b": flat(0.9), "c": {1: 0.9}}
    assert stops(rule("median", curves=short), "x", flat(0.1)) == 0


def test_less_may_be_better_and_what_is_not_finite_is_worst() -> None:
    options = {"watch": "train/loss", "watch_mode": "min"}
    others = {"a": flat(0.5), "b": flat(0.6), "c": flat(0.7)}
    found = rule("median", curves=others, **options)
    assert stops(found, "x", flat(0.55)) == 0
    assert stops(found, "y", flat(0.8)) == 2
    assert "train/loss 0.8 is above 0.5" in found.reasons["y"]
    assert stops(found, "z", flat(float("nan"))) == 2
    assert stops(found, "x2", flat(0.1)) == 0


# --- Successive halving ---------------------------------------------------------------------------
def test_the_last_epoch_is_no_rung() -> None:
    """With nine epochs and rungs at 1, 3, 9, a trial that reaches its ninth is measured."""
    found = rule("asha", grace=1, curves={"a": flat(0.5), "b": flat(0.6)})
    worse = {**flat(0.9), 4: 0.1, 5: 0.1, 6: 0.1, 7: 0.1, 8: 0.1, 9: 0.1}
    assert stops(found, "x", worse) == 0
    assert stops(found, "y", flat(0.55)) == 1
    assert stops(found, "z", {1: 0.99, 2: 0.1, 3: 0.1}) == 3
    # One that is shorter by its own values ends at its own last epoch.
    assert stops(found, "short", {1: 0.99, 2: 0.99, 3: 0.1}, epochs=3) == 0


def test_a_rung_is_judged_once_and_by_one_in_so_many() -> None:
    found = rule("asha", grace=2, curves={"a": flat(0.5)})
    assert stops(found, "x", flat(0.1)) == 0  # of one in three, two others must be there
    assert stops(found, "y", flat(0.3)) == 2
    assert found.reasons["y"].startswith("val/accuracy 0.3 is below 0.36")
    assert found.reasons["y"].endswith("where the best 1/3 of 2 others begins")
    # Validated every fifth epoch: the first report after the rung counts.
    sparse = rule("asha", grace=2, curves={"a": {5: 0.5}, "b": {5: 0.6}})
    assert stops(sparse, "z", {5: 0.1}) == 5


def test_tune_is_told_to_stop_by_the_reports_of_its_trials() -> None:
    found = rule("asha", grace=1, curves={"a": flat(0.5), "b": flat(0.6)})
    trial = SimpleNamespace(config={"trial": {"name": "x", "values": {"train.epochs": 2}}})

    def told(**result: float) -> str:
        return found.on_trial_result(
            None, trial, {k.replace("_", "/"): v for k, v in result.items()}
        )

    assert told(epoch=1, val_accuracy=0.1) == TrialScheduler.STOP
    assert told(epoch=2, val_accuracy=0.1) == TrialScheduler.CONTINUE  # its last one
    assert told(epoch=1) == TrialScheduler.CONTINUE


# --- Records --------------------------------------------------------------------------------------
def test_a_loss_counts_by_whole_epochs_and_a_validation_at_once(tmp_path: Path) -> None:
    loss = EpochMeans("train/loss")
    reports = [loss.add(epoch, value) for epoch, value in ((0, 4.0), (0, 2.0), (1, 1.0), (3, 9.0))]
    assert reports == [None, None, (1, 3.0), (2, 1.0)]
    assert EpochMeans("val/accuracy").add(4, 0.5) == (5, 0.5)
    folders = TrialFolders(str(tmp_path))
    records = [
        {"step": 2, "epoch": 0, "train/loss": 3.0}, {"step": 2, "epoch": 0, "val/accuracy": 0.5},
        {"step": 4, "epoch": 1, "train/loss": None}, {"step": 4, "epoch": 1, "val/accuracy": 0.6},
    ]  # fmt: skip
    folders.folder("a").write("config.yaml", "x: 1\n")
    folders.folder("a").write("metrics.jsonl", "".join(json.dumps(r) + "\n" for r in records))
    folders.folder("b").write("config.yaml", "x: 1\n")
    assert read_curves(folders, "val/accuracy") == {"a": {1: 0.5, 2: 0.6}}
