"""The splits that a job reads, and what those it measures on share with those it trains on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from recon_ray.config.fields import option, with_option
from recon_ray.config.sections.common import JobConfig
from recon_ray.config.sections.data import SetSection
from recon_ray.data.format.point_hashes import SplitHashes, hash_split
from recon_ray.data.format.prepared import PreparedSet, Split
from recon_ray.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=JobConfig)

logger = logging.getLogger(__name__)

#: Classes that a message names.
SHOWN = 10


# --- Splits that are read without training --------------------------------------------------------


def choose_splits(
    config: ConfigT, prepared: PreparedSet, key: str, *, reads_all: bool = False
) -> tuple[ConfigT, str]:
    """Fill the option of the splits that are read, and say which they are.

    Args:
        config: The job's configuration.
        prepared: The set.
        key: The option; null is the split ``test`` if the set has one with shapes, else all.
        reads_all: Null is all splits.

    Returns:
        The configuration with each split once, and a sentence on the shapes that are read and
        those that are not.

    Raises:
        ConfigError: If a split is absent or empty.
    """
    filled = {name: split.rows for name, split in prepared.splits.items() if split.rows}
    usual = ("test",) if "test" in filled and not reads_all else tuple(filled)
    splits = tuple(dict.fromkeys(option(config, key) or usual))
    if not splits:
        raise ConfigError(f"data.path={prepared.path}: it has no shapes; prepare it again")
    for name in splits:
        if name not in filled:
            raise ConfigError(
                f"{key}={name}: {prepared.path} has no shapes in such a split, only in "
                f"{', '.join(filled)}; choose of them"
            )
    limit = option(config, "data.limit", None)
    shapes = sum(min(filled[name], limit or filled[name]) for name in splits)
    text = f"{shapes:,} shapes of {' and '.join(splits)}"
    if shapes < sum(filled[name] for name in splits):
        text += f" (data.limit={limit})"
    others = [f"{name} holds {n:,} more" for name, n in filled.items() if name not in splits]
    if others:
        text += f"; {', '.join(others)}: {key}=[{','.join(filled)}]"
    logger.info("%s", text)
    return with_option(config, key, splits), text


# --- Splits that are trained on and measured on ---------------------------------------------------


@dataclass(frozen=True)
class HeldOut:
    """A split that is measured on.

    Attributes:
        key: Option that names it.
        split: Its name.
        limit: The first rows only.
    """

    key: str
    split: str
    limit: int | None = None


def held_out(data: SetSection, *, limit: int | None = None) -> list[HeldOut]:
    """Return the splits that a section of a training names to choose an epoch and to measure."""
    keys = ("validation_split", "test_split")
    named = [(f"data.{key}", getattr(data, key)) for key in keys]
    return [HeldOut(key, split, limit) for key, split in named if split is not None]


def compare_splits(
    prepared: PreparedSet,
    train: Sequence[str],
    held_out: Sequence[HeldOut],
    *,
    limit: int | None = None,
    needs_classes: bool = True,
) -> dict[str, Any]:
    """Say which shapes a job measures on that its training makes too easy, or impossible.

    Args:
        prepared: The set.
        train: Splits that are trained on.
        held_out: Splits that are measured on; none is trained on by its name.
        limit: Shapes that are trained on, the first ones.
        needs_classes: Refuse a split of which no class is trained on.

    Returns:
        Counts for ``result.json``: ``unlabeled`` (split to shapes without a class),
        ``untrained_classes`` (split to class to shapes) and ``duplicates`` (split to other split to
        shapes of equal points).

    Raises:
        ConfigError: If all shapes of a split are trained on, or none of its classes is.
    """
    joined = prepared.join(train)
    labels = {joined.name: _labels(prepared, joined, limit)}
    for one in held_out:
        labels[one.split] = _labels(prepared, prepared.split(one.split), one.limit)
    return {
        "unlabeled": {name: _unlabeled(name, values) for name, values in labels.items()},
        "untrained_classes": _untrained(prepared, labels, held_out, needs=needs_classes),
        "duplicates": _duplicates(prepared, joined, held_out, limit),
    }


def _labels(prepared: PreparedSet, split: Split, limit: int | None) -> np.ndarray:
    return prepared.read(split, columns=["label"])["label"].to_numpy()[:limit]


def _unlabeled(split: str, labels: np.ndarray) -> int:
    count = int((labels < 0).sum())
    if 0 < count < len(labels):
        logger.warning(
            "%d of %d %s shapes have no class and are left out where classes are learned or "
            "measured", count, len(labels), split,
        )  # fmt: skip
    return count


def _untrained(
    prepared: PreparedSet,
    labels: Mapping[str, np.ndarray],
    held_out: Sequence[HeldOut],
    *,
    needs: bool,
) -> dict[str, dict[str, int]]:
    train = next(iter(labels))
    trained = {*labels[train].tolist()}
    found = {}
    for one in held_out:
        own = labels[one.split]
        numbers, counts = np.unique(own[own >= 0], return_counts=True)
        missing = {
            prepared.classes[number]: int(count)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
            if number not in trained
        }
        found[one.split] = missing
        if not missing:
            continue
        shown = [f"{name} ({count})" for name, count in missing.items()]
        names = ", ".join([*shown[:SHOWN], *(["..."] if len(shown) > SHOWN else [])])
        if needs and len(missing) == len(numbers):
            raise ConfigError(
                f"{one.key}={one.split}: none of its classes in {prepared.path} has a training "
                f"shape in {train} ({names}); choose splits of the same classes"
            )
        logger.warning(
            "%d of the %d classes in %s have no training shape in %s, so that their %d shapes "
            "cannot be right: %s", len(missing), len(numbers), one.split, train,
            sum(missing.values()), names,
        )  # fmt: skip
    return found


def _duplicates(
    prepared: PreparedSet, train: Split, held_out: Sequence[HeldOut], limit: int | None
) -> dict[str, dict[str, int]]:
    others = [hash_split(prepared, train, limit)]
    found: dict[str, dict[str, int]] = {}
    for one in held_out:
        mine = hash_split(prepared, prepared.split(one.split), one.limit)
        found[one.split] = {other.name: _shared(mine, other) for other in others}
        if 0 < mine.rows == found[one.split][train.name]:
            raise ConfigError(
                f"{one.key}={one.split}: all {mine.rows} shapes of it in {prepared.path} are in "
                f"{train.name} too (same points); choose held-out shapes"
            )
        others.append(mine)
    for part in (one for one in others if one.is_part):
        logger.warning(
            "equal shapes were looked for among the first %d of %d %s shapes only",
            len(part.hashes), part.rows, part.name,
        )  # fmt: skip
    return found


def _shared(mine: SplitHashes, other: SplitHashes) -> int:
    """Count the shapes of a split that are in another one, and warn of them."""
    is_shared = np.isin(mine.hashes, other.hashes)
    count = int(is_shared.sum())
    if count:
        logger.warning(
            "%d of %d %s shapes are in the %s split too (same points), first: %s",
            count, mine.rows, mine.name, other.name, mine.object_ids[is_shared][0],
        )  # fmt: skip
    return count
