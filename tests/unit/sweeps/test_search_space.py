"""Search spaces: what is legal, what is drawn, and the names of trials."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from recon_ray.errors import ConfigError
from recon_ray.sweeps.config import SweepConfig, SweepSection
from recon_ray.sweeps.fewshot.config import FewshotConfig, FewshotSection
from recon_ray.sweeps.search_space import Domain, list_trials, parse_space, trial_name, with_seeds

SPACE = {
    "optim.lr": {"loguniform": [1e-5, 1e-2]},
    "train.tune": {"grid": ["full", "mlp3"]},
    "train.epochs": {"randint": [1, 3]},
    "model.drop_path": {"uniform": [0.0, 0.5]},
    "optim.weight_decay": {"choice": [0.01, 0.1]},
}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"grid": []}, "a: grid is empty; give at least one value"),
        ({"grid": 3}, "a: grid expects a list, found 3"),
        ({"grid": [1, 2, 1]}, "a: grid has a value twice"),
        ({"uniform": [2, 1]}, "uniform expects the lower bound first .* found \\[2, 1\\]"),
        ({"uniform": [1]}, "uniform expects two numbers \\[low, high\\], found \\[1\\]"),
        ({"uniform": [1, math.inf]}, "uniform expects two numbers"),
        ({"uniform": [True, 2]}, "uniform expects two numbers"),
        ({"randint": [1, 2.5]}, "randint expects two integers"),
        ({"loguniform": [0, 1]}, "loguniform expects bounds above 0"),
        ({"normal": [0, 1]}, "expected one of grid, choice, .* found keys normal"),
        ({"grid": [1], "choice": [1]}, "found keys grid, choice"),
        (3, "expected one of grid, choice, uniform, loguniform, randint .* found 3"),
    ],
)
def test_a_domain_that_is_none_is_refused_in_a_sentence(written: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_space({"a": written})
    with pytest.raises(ValidationError, match=message):
        SweepSection(space={"a": written})


def test_draws_lie_within_their_bounds_in_few_digits() -> None:
    space = parse_space(SPACE)
    random = np.random.default_rng(0)
    for _ in range(200):
        drawn = {key: domain.draw(random) for key, domain in space.items()}
        assert 1e-5 <= drawn["optim.lr"] <= 1e-2
        assert drawn["train.epochs"] in (1, 2, 3)
        assert isinstance(drawn["train.epochs"], int)
        assert 0 <= drawn["model.drop_path"] <= 0.5
        assert drawn["optim.weight_decay"] in (0.01, 0.1)
        assert float(f"{drawn['optim.lr']:.5g}") == drawn["optim.lr"]
    ends = {parse_space({"a": {"randint": [1, 2]}})["a"].draw(random) for _ in range(50)}
    assert ends == {1, 2}


def test_more_samples_leave_the_first_trials_as_they_are() -> None:
    space = with_seeds(parse_space(SPACE), 2, first=5)
    three = list_trials(space, samples=3, seed=1)
    assert len(three) == 3 * 2 * 2
    assert list_trials(space, samples=5, seed=1)[:12] == three
    assert list_trials(space, samples=3, seed=2) != three
    assert [trial["run.seed"] for trial in three[:4]] == [5, 6, 5, 6]
    # All points of the grids see the same draw.
    assert len({trial["optim.lr"] for trial in three}) == 3
    assert [*three[0]] == [*SPACE, "run.seed"]


def test_seeds_given_twice_and_several_workers_are_refused() -> None:
    space = {"run.seed": Domain("grid", (1, 2))}
    with pytest.raises(ConfigError, match=r"sweep\.seeds=3: sweep\.space has run\.seed too"):
        with_seeds(space, 3, first=0)
    with pytest.raises(ValidationError, match=r"cluster\.workers=2: the trials are the workers"):
        SweepConfig(cluster={"workers": 2}, sweep={"seeds": 2})


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"optim.lr": 1e-4, "run.seed": 2}, "007_lr-0.0001_seed-2"),
        ({"data.path": "/a/b c"}, "007_path--a-b-c"),
        ({"data.episode": [5, 10, 3]}, "007_episode--5--10--3"),
        ({"init_from": "x" * 300}, "007_init_from-" + "x" * 82),
    ],
)
def test_a_name_serves_as_a_folder(values: dict[str, Any], name: str) -> None:
    assert trial_name(7, values) == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing is varied"),
        ({"seeds": 2, "samples": 3}, "samples=3, but space draws nothing"),
        ({"seeds": 2, "scheduler": "asha"}, "biases mean and deviation"),
        (
            {"space": {"run.seed": {"grid": [1, 2]}}, "scheduler": "median"},
            "biases mean and deviation",
        ),
        ({"seeds": 2, "search": "optuna"}, "search=optuna, but space draws nothing"),
        ({"seeds": 2, "space": SPACE, "search": "optuna"}, "proposes configurations, not seeds"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SweepSection(**options)


def test_folds_are_a_number_or_a_list() -> None:
    section = FewshotSection(way=5, shot=(10, 20), folds=(3,))
    assert section.episodes == [(5, 10, 3), (5, 20, 3)]
    assert len(FewshotSection().episodes) == 40
    with pytest.raises(ValidationError, match="a number twice"):
        FewshotSection(folds=(1, 1))
    with pytest.raises(ValidationError, match="is empty"):
        FewshotSection(way=())
    with pytest.raises(ValidationError, match=r"choose with fewshot\.way"):
        FewshotConfig(data={"episode": (5, 10, 0)}, cluster={"workers": 0})
