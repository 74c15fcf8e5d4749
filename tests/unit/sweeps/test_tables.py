"""Tables of trials against figures worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from recon_ray.sweeps.tables import (
    Spread,
    TrialRow,
    is_fraction,
    mean_and_deviation,
    numbers_of,
    ranked,
    read_rows,
    spreads,
    stopped_cells,
    summary_cells,
    trials_table,
)
from recon_ray.sweeps.trial_folders import TrialFolders
from recon_ray.sweeps.trial_placement import Trial


def row(name: str, lr: float, seed: int, accuracy: float, **more: object) -> TrialRow:
    metrics = {"accuracy": accuracy, "accuracy_last": accuracy - 0.1, "accuracy_best": accuracy}
    values = {"optim.lr": lr, "run.seed": seed}
    return TrialRow(name, values, "done", metrics, "by hand", **more)


ROWS = [
    row("a", 1e-3, 0, 0.8, protocol="reference"),
    row("b", 1e-3, 1, 0.9, protocol="reference"),
    row("c", 1e-3, 2, 1.0, protocol="reference"),
    row("d", 1e-4, 0, 0.95),
    TrialRow("e", {"optim.lr": 1e-4, "run.seed": 1}, "failed", error="no"),
]


def test_mean_and_sample_deviation_are_those_of_a_hand_calculation() -> None:
    first, second = spreads(ROWS, "accuracy")
    assert first.values == {"optim.lr": 1e-3}
    assert first.mean == pytest.approx(0.9, abs=1e-12)
    # sqrt((0.1² + 0 + 0.1²) / (3 - 1)) = 0.1; with ddof=0 it would be 0.0816
    assert first.deviation == pytest.approx(0.1, abs=1e-12)
    assert (second.mean, len(second.numbers)) == (0.95, 1)
    assert (first.counted, second.counted) == ("3", "1 of 2")
    assert math.isnan(second.deviation)
    assert second.record()["std"] is None
    assert set(first.labeled) == {"last epoch", "best on test"}
    assert set(second.labeled) == {"last epoch", "best on validation"}
    assert first.record()["labeled"]["last epoch"]["mean"] == pytest.approx(0.8, abs=1e-12)
    assert first.record()["labeled"]["best on test"]["std"] == pytest.approx(0.1, abs=1e-12)


def test_the_best_comes_first_by_mode_and_a_diverged_one_counts() -> None:
    groups = spreads(ROWS, "accuracy")
    assert [group.mean for group in ranked(groups, "max")] == [0.95, pytest.approx(0.9)]
    assert ranked(groups, "min")[0].values == {"optim.lr": 1e-3}
    assert ranked([Spread({}, numbers_of([], "accuracy"))], "max") == []
    rows = [row("a", 1e-3, 0, 0.5), row("b", 1e-3, 1, math.nan)]
    (group,) = spreads(rows, "accuracy")
    record = group.record()
    assert (record["count"], record["mean"], record["std"]) == (2, None, None)
    assert spreads([], "accuracy") == []


def test_a_failed_trial_is_a_row_without_numbers_and_mixed_values_are_texts() -> None:
    table = trials_table(ROWS).to_pydict()
    assert table["status"] == ["done"] * 4 + ["failed"]
    assert table["metrics.accuracy"] == [0.8, 0.9, 1.0, 0.95, None]
    assert table["error"][-1] == "no"
    assert table["optim.lr"] == [1e-3] * 3 + [1e-4] * 2
    rows = [TrialRow(str(i), {"x": value}, "waiting") for i, value in enumerate((1, "a", None))]
    assert trials_table(rows)["x"].to_pylist() == ["1", "a", "null"]


def test_a_stopped_trial_is_listed_with_epoch_and_reason(tmp_path: Path) -> None:
    folders = TrialFolders(str(tmp_path))
    folders.mark_stopped("f", {"epoch": 4, "val/accuracy": 0.2, "reason": "it lags"})
    folders.mark_stopped("g", {"epoch": 2, "val/accuracy": 0.1})  # of an earlier version
    rows = [*ROWS, *read_rows(folders, [Trial(name, {"optim.lr": 1e-5}) for name in "fg"])]
    head, cells = stopped_cells(rows)
    assert head == ["stopped early", "optim.lr", "when and why"]
    assert cells[0] == ["f", "1e-05", "stopped after epoch 4: it lags"]
    assert cells[1][-1] == "stopped after epoch 2: by the scheduler"
    table = trials_table(rows).to_pydict()
    assert table["stopped_epoch"][-3:] == [None, 4, 2]
    assert table["reason"][-2:] == ["it lags", ""]
    assert table["metrics.val/accuracy"][-2:] == [0.2, 0.1]
    assert len(spreads(rows, "accuracy")) == 3
    assert len(ranked(spreads(rows, "accuracy"), "max")) == 2


def test_cells_show_percent_and_no_deviation_of_one() -> None:
    head, cells = summary_cells(spreads(ROWS, "accuracy"), "accuracy", percent=True)
    assert head[:3] == ["optim.lr", "trials", "accuracy, mean ± std"]
    assert cells[0][:5] == ["0.001", "3", "90.00 % ± 10.00 %", "80.00 %", "100.00 %"]
    assert cells[1][1:3] == ["1 of 2", "95.00 %"]
    assert mean_and_deviation(numbers_of([], "accuracy"), percent=False) == "-"
    assert is_fraction("accuracy", ROWS)
    assert not is_fraction("loss_last", ROWS)
