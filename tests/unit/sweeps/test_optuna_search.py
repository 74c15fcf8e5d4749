"""Optuna's proposals: within the space, continued from what is on disk, refused where absent."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from ray.tune.search import Searcher

from recon_ray.errors import ConfigError
from recon_ray.sweeps.config import SweepSection
from recon_ray.sweeps.optuna_search import OptunaSource, import_optuna, most_trials
from recon_ray.sweeps.search_space import parse_space

SPACE = {
    "optim.lr": {"loguniform": [1e-5, 1e-2]},
    "train.tune": {"choice": ["full", "mlp3"]},
    "train.epochs": {"randint": [1, 3]},
}


def source(count: int, **more: Any) -> OptunaSource:
    pytest.importorskip("optuna", reason="Optuna is not installed (recon-ray[search])")
    options = SweepSection(space=SPACE, samples=count, search="optuna")
    return OptunaSource(parse_space(SPACE), options, "accuracy", **more)


def test_proposals_are_legal_and_end_after_their_number() -> None:
    found = source(4)
    for number in range(4):
        trial = found.suggest(str(number))["trial"]
        values = trial["values"]
        assert trial["name"].startswith(f"00{number}_lr-")
        assert 1e-5 <= values["optim.lr"] <= 1e-2
        assert values["train.tune"] in ("full", "mlp3")
        assert values["train.epochs"] in (1, 2, 3)
        found.on_trial_complete(str(number), {"accuracy": number / 10})
    assert found.suggest("5") == Searcher.FINISHED


def test_a_continued_search_finishes_what_was_begun_and_counts_what_is_done() -> None:
    first = {"optim.lr": 1e-3, "train.tune": "full", "train.epochs": 2}
    begun = {**first, "optim.lr": 1e-4}
    found = source(4, earlier=[(first, 0.5), (first, None)], unfinished=[("002_b", begun)])
    assert found.suggest("a") == {"trial": {"name": "002_b", "values": begun}}
    assert found.suggest("b")["trial"]["name"].startswith("003_")
    assert found.suggest("c") == Searcher.FINISHED
    found.on_trial_complete("a", error=True)
    found.on_trial_complete("b", {"accuracy": 0.7})


def test_what_was_tried_is_not_proposed_again_and_a_small_space_ends() -> None:
    pytest.importorskip("optuna", reason="Optuna is not installed (recon-ray[search])")
    space = {"train.tune": {"choice": ["full", "mlp3"]}, "train.epochs": {"randint": [1, 3]}}
    options = SweepSection(space=space, samples=20, search="optuna")
    assert most_trials(parse_space(space), options) == 6
    assert most_trials(parse_space(SPACE), options) == 20
    begun = {"train.tune": "full", "train.epochs": 2}
    found = OptunaSource(parse_space(space), options, "accuracy", earlier=[(begun, 0.9)])
    proposed = [begun]
    while (suggested := found.suggest(str(len(proposed)))) != Searcher.FINISHED:
        proposed.append(suggested["trial"]["values"])
        found.on_trial_complete(str(len(proposed) - 1), {"accuracy": 0.1})
    assert len(proposed) == len({tuple(values.items()) for values in proposed}) == 6


def test_without_optuna_the_search_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"Optuna is not installed; pip install 'recon-ray"):
        import_optuna()
