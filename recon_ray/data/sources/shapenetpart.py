"""ShapeNetPart: clouds with normals and a part label for every point, in text files."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recon_ray.data.readers.meshes import Shape, check_shape
from recon_ray.data.readers.text import read_rows
from recon_ray.data.sources.base import Excluded, Item, Listing, Sample
from recon_ray.data.sources.cards import CARDS, Card
from recon_ray.data.sources.layout import (
    check_lists,
    class_entry,
    file_sizes,
    find_root,
    published_listing,
    read_json_file,
    read_list,
)
from recon_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

SYNSETS = "synsetoffset2category.txt"
COLUMNS = 7  # x y z nx ny nz part
CAPACITY = 3072  # points of a shape; most have 2,000 to 3,000


@dataclass(frozen=True)
class ShapeNetPartSource:
    """The shapes of sixteen categories with their parts.

    Attributes:
        folder: Where they lie.
    """

    folder: Path
    name: str = "shapenetpart"

    def scan(self) -> Listing:
        """List the shapes of the three lists.

        Raises:
            DataError: If the folder has another layout, or a list is missing or damaged.
        """
        folder, card = Path(self.folder), CARDS[self.name]
        root = find_root(folder, lambda path: (path / SYNSETS).is_file(), SYNSETS)
        lists = {split: _list(root, split) for split in card.counts}
        lines = {split: _read_entries(path) for split, path in lists.items()}
        check_lists(card, lists.values())
        return published_listing(
            card,
            _entries(root.relative_to(folder), root, card, lines),
            num_points=CAPACITY,
            keeps_all_points=True,
            part_labels=True,
        )

    def load(self, item: Item) -> Sample:
        """Read one shape; its part numbers have to be those of its category."""
        path = Path(self.folder) / item.file
        table = read_rows(path, COLUMNS)
        parts = CARDS[self.name].parts[item.category]
        wrong = np.flatnonzero(~np.isin(table[:, 6], parts))
        if len(wrong):
            raise DataError(
                f"{path} line {wrong[0] + 1}: part {table[wrong[0], 6]:g} is not one of "
                f"{item.category}'s, {parts[0]} to {parts[-1]}"
            )
        shape = Shape(table[:, :3], normals=table[:, 3:6], part_labels=table[:, 6].astype(np.uint8))
        check_shape(shape, str(path))
        return Sample(shape)


def _list(root: Path, split: str) -> Path:
    return root / "train_test_split" / f"shuffled_{split}_file_list.json"


def _read_entries(path: Path) -> list[str]:
    """Read entries like ``shape_data/<synset>/<model>`` as ``<synset>/<model>``."""
    entries = read_json_file(path)
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise DataError(f"{path}: is not a list of names; fetch it again")
    names = ["/".join(entry.split("/")[-2:]) for entry in entries]
    seen: set[str] = set()
    for number, name in enumerate(names, 1):
        if name in seen or name.count("/") != 1:
            fault = "is listed twice" if name in seen else "is not <synset>/<model>"
            raise DataError(f"{path} entry {number}: {name} {fault}")
        seen.add(name)
    return names


def _categories(path: Path) -> dict[str, str]:
    """Read the category of every synset."""
    words = [line.split() for line in read_list(path)]
    wrong = next((number for number, pair in enumerate(words, 1) if len(pair) != 2), None)
    if wrong is not None:
        raise DataError(f"{path} line {wrong}: is not a category and a synset")
    return {synset: category for category, synset in words}


def _object_ids(lines: dict[str, list[str]]) -> dict[tuple[str, str], str]:
    """Return the object id of each (split, name); a shape in two lists is two samples.

    The second has its split's name in the id. The official lists have 26 such shapes of training
    and test, and the published results include them.
    """
    owner: dict[str, str] = {}
    ids: dict[tuple[str, str], str] = {}
    repeated: Counter[str] = Counter()
    for split, names in lines.items():
        for name in names:
            first = owner.setdefault(name, split)
            ids[split, name] = name if first == split else f"{name}@{split}"
            repeated[f"{first} and {split}"] += first != split
    for both, count in repeated.items():
        if count:
            logger.warning("%d shapes are in both %s; all are kept, as published", count, both)
    return ids


def _entries(
    prefix: Path, root: Path, card: Card, lines: dict[str, list[str]]
) -> Iterator[Item | Excluded]:
    categories = _categories(root / SYNSETS)
    # The published training is on the union of both lists: nobody trains on a shape twice.
    trained = set(lines["train"])
    twice = [name for name in lines["val"] if name in trained]
    lines = {**lines, "val": [name for name in lines["val"] if name not in trained]}
    for name in twice:
        file = (prefix / f"{name}.txt").as_posix()
        yield Excluded(f"{name}@val", file, "in the training list too, where it stays")
    listed = {name for names in lines.values() for name in names}
    ids = _object_ids(lines)
    synsets = {name.split("/")[0] for name in listed} | set(categories)
    sizes = {synset: file_sizes(root / synset, ".txt") for synset in sorted(synsets)}
    for split, names in lines.items():
        for name in names:
            synset, model = name.split("/")
            category, file = categories.get(synset, synset), (prefix / f"{name}.txt").as_posix()
            size = sizes[synset].get(f"{model}.txt", -1)
            yield class_entry(ids[split, name], split, category, card.classes, file, size)
    for synset, files in sizes.items():
        for file in sorted(files):
            name = f"{synset}/{Path(file).stem}"
            if name not in listed:
                yield Excluded(name, (prefix / synset / file).as_posix(), "in no list")
