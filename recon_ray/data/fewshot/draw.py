"""Few-shot episodes: which shapes train and test a classifier of a few classes."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import TYPE_CHECKING

import pyarrow as pa

from recon_ray.data.readers.meshes import sample_generator
from recon_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

EPISODE_KEYS = ("way", "shot", "fold")
_COLUMNS = dict.fromkeys(EPISODE_KEYS, pa.int16())
_COLUMNS |= {"split": pa.string(), "object_id": pa.string()}
_COLUMNS |= {"label": pa.int32()}  # 0 to way - 1, within the episode
EPISODES = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()])


def episode_table(rows: Sequence[tuple[int, int, int, str, str, int]]) -> pa.Table:
    """Make the table of episodes from (way, shot, fold, split, object id, label) rows."""
    columns = list(zip(*rows, strict=True)) or [()] * len(EPISODES)
    return pa.table(dict(zip(EPISODES.names, columns, strict=True)), schema=EPISODES)


def draw_episodes(
    train_ids: Sequence[str],
    train_labels: Sequence[int],
    test_ids: Sequence[str],
    test_labels: Sequence[int],
    *,
    ways: Sequence[int] = (5, 10),
    shots: Sequence[int] = (10, 20),
    folds: int = 10,
    test_per_class: int = 20,
    seed: int,
) -> pa.Table:
    """Draw episodes from a data set with labels, in the way of the published ones.

    For every way, shot and fold: some classes in random order, which numbers them; of each
    ``shot`` random training shapes and ``test_per_class`` random test shapes; both mixed. The draw
    depends on the seed, the ids and the labels, not on their order.

    Args:
        train_ids: Object ids of the training split.
        train_labels: Their classes.
        test_ids: Object ids of the test split.
        test_labels: Their classes.
        ways: Numbers of classes of an episode.
        shots: Numbers of training shapes of a class.
        folds: Episodes of every way and shot.
        test_per_class: Test shapes of a class.
        seed: Seed of the draw.

    Returns:
        Columns way, shot, fold, split, object_id, label; in the order in which they were drawn.

    Raises:
        DataError: If there are too few classes, or too few shapes of one of them.
    """
    train, test = _by_class(train_ids, train_labels), _by_class(test_ids, test_labels)
    classes = sorted(train)
    if len(classes) < max(ways):
        raise DataError(
            f"episodes of {max(ways)} classes need as many; there are training shapes of "
            f"{len(classes)}"
        )
    for what, shapes, count in (("training", train, max(shots)), ("test", test, test_per_class)):
        for label in classes:
            if (found := len(shapes.get(label, []))) < count:
                raise DataError(
                    f"class {label} has {found} {what} shapes, but episodes take {count} of each "
                    "class"
                )
    rows: list[tuple[int, int, int, str, str, int]] = []
    for way, shot, fold in itertools.product(ways, shots, range(folds)):
        generator = sample_generator(seed, f"episode {way} {shot} {fold}")
        chosen = [classes[i] for i in generator.permutation(len(classes))[:way]]
        for split, shapes, count in (("train", train, shot), ("test", test, test_per_class)):
            drawn = _draw(shapes, chosen, count, generator)
            rows += [(way, shot, fold, split, *entry) for entry in drawn]
    return episode_table(rows)


def _by_class(ids: Sequence[str], labels: Sequence[int]) -> dict[int, list[str]]:
    shapes: dict[int, list[str]] = defaultdict(list)
    for object_id, label in sorted(zip(ids, labels, strict=True)):
        if label >= 0:
            shapes[int(label)].append(object_id)
    return dict(shapes)


def _draw(
    shapes: Mapping[int, list[str]],
    classes: Sequence[int],
    count: int,
    generator: np.random.Generator,
) -> list[tuple[str, int]]:
    drawn = [
        (shapes[label][i], number)
        for number, label in enumerate(classes)
        for i in generator.permutation(len(shapes[label]))[:count]
    ]
    return [drawn[i] for i in generator.permutation(len(drawn))]
