"""Scaling published runs down: what ``reproduce.budget`` changes, and how the table says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recon_ray.config.sections.common import JobConfig
from recon_ray.reproduce.config import ReproduceSection
from recon_ray.reproduce.paper import FOLDS, SEEDS
from recon_ray.sweeps.fewshot.config import FewshotConfig

#: Part of the published length that ``smoke`` takes, points of a cloud, shapes, and repeats.
SMOKE, POINTS, SHAPES, REPEATS = 0.01, 1024, 256, 2
#: Fewest seeds and folds: a deviation needs two.
FEWEST = 2
#: Options that the smallest models would not fit; empty, they take the sizes of the weights.
SIZES = ("num_groups", "group_size", "feature_blocks")


@dataclass(frozen=True)
class Budget:
    """How much of the published runs is done.

    Attributes:
        fraction: Part of the epochs and of the rounds of voting.
        is_smoke: Also the nano model, few points and few shapes.
        seeds: Fine-tunings of each classification set.
        folds: Folds of each few-shot setting.
    """

    fraction: float
    is_smoke: bool
    seeds: int
    folds: int

    @classmethod
    def of(cls, options: ReproduceSection) -> Budget:
        """Read the options."""
        is_smoke = options.budget == "smoke"
        named = {"full": 1.0, "smoke": SMOKE}
        fraction = named.get(str(options.budget)) or float(options.budget)
        seeds = options.seeds or max(FEWEST, math.ceil(SEEDS * fraction))
        folds = options.folds or max(FEWEST, math.ceil(FOLDS * fraction))
        return cls(fraction, is_smoke, seeds, folds)

    def changes(self, config: JobConfig) -> dict[str, Any]:
        """Options that make a run smaller, by dotted key; nothing of a full budget.

        Args:
            config: The run as published.
        """
        if self.fraction == 1:
            return {}
        changed = self._lengths(config)
        if self.is_smoke:
            changed |= _smallest(config)
        return changed

    def _lengths(self, config: JobConfig) -> dict[str, Any]:
        sections = dict(config)
        changed: dict[str, Any] = {}
        if "train" in sections:
            changed["train.epochs"] = _part(sections["train"].epochs, self.fraction)
            warm_up = sections["optim"].warmup_epochs * self.fraction
            changed["optim.warmup_epochs"] = float(f"{warm_up:.3g}")
        votes = getattr(sections.get("eval"), "votes", 0)
        if votes:
            changed["eval.votes"] = _part(votes, self.fraction)
        return changed


def _part(count: int, fraction: float) -> int:
    return max(1, round(count * fraction))


def _smallest(config: JobConfig) -> dict[str, Any]:
    data, model, evaluation = (getattr(config, name, None) for name in ("data", "model", "eval"))
    changed: dict[str, Any] = {}
    if (getattr(data, "num_points", None) or 0) > POINTS:
        changed["data.num_points"] = POINTS
    if hasattr(data, "limit") and not isinstance(config, FewshotConfig):
        changed["data.limit"] = min(SHAPES, getattr(data, "limit", None) or SHAPES)
    for name in SIZES:
        if getattr(model, name, None) is not None:
            changed[f"model.{name}"] = None
    if getattr(model, "preset", None) is not None:
        changed["model.preset"] = "nano"
    if getattr(evaluation, "repeats", 0) > REPEATS:
        changed["eval.repeats"] = REPEATS
    return changed


#: What the options that are scaled count.
_UNITS = {
    "train.epochs": "epochs",
    "eval.votes": "rounds of voting",
    "eval.repeats": "subsets a round",
    "data.num_points": "points",
}


def describe(config: JobConfig, changes: Mapping[str, Any]) -> list[str]:
    """Say what was scaled down, for the table: ``3 of 300 epochs``.

    Args:
        config: The run as published.
        changes: What :meth:`Budget.changes` gave.
    """
    notes = []
    for key, unit in _UNITS.items():
        if key in changes:
            section, _, name = key.partition(".")
            before = getattr(getattr(config, section), name)
            if before != changes[key]:
                notes.append(f"{changes[key]:,} of {before:,} {unit}")
    if "data.limit" in changes:
        notes.append(f"at most {changes['data.limit']} shapes")
    if any(key.startswith("model.") for key in changes):
        notes.append("nano model")
    return notes
