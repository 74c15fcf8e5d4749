"""The published few-shot episodes of ModelNet40: ``{way}way_{shot}shot/{fold}.pkl``.

A pickle holds the training and the test samples of an episode, each a cloud of 8,192 points with
normals, a label within the episode and a label of ModelNet40. A cloud of several episodes becomes
one row; the table of episodes refers to the rows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recon_ray.data.fewshot.draw import episode_table
from recon_ray.data.format.files import visible
from recon_ray.data.readers.file_cache import RecentFiles
from recon_ray.data.readers.pickles import load_pickle
from recon_ray.data.sources.base import Item, Listing, Sample
from recon_ray.data.sources.cards import CARDS
from recon_ray.data.sources.layout import class_entry, find_root, published_listing, split_reference
from recon_ray.data.sources.modelnet import cloud_with_normals
from recon_ray.errors import DataError

FOLDER = re.compile(r"\d+way_\d+shot")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class FewshotSource:
    """The pickles of all episodes.

    Attributes:
        folder: Parent of the folders of ways and shots.
    """

    folder: Path
    name: str = "fewshot"

    def scan(self) -> Listing:
        """Read all episodes and list the clouds that differ.

        Raises:
            DataError: If there are no pickles, or one is damaged or names more than arrays.
        """
        folder, card = Path(self.folder), CARDS[self.name]
        root = find_root(
            folder, lambda path: bool(_pickles(path)), "{way}way_{shot}shot/{fold}.pkl"
        )
        items: dict[str, Item] = {}
        rows: list[tuple[int, int, int, str, str, int]] = []
        for path in _pickles(root):
            for split, label, item in _episode(folder, path):
                known = items.setdefault(item.object_id, item)
                if known.label != item.label:
                    raise DataError(
                        f"{item.file}: is {item.category}, but the same cloud in {known.file} is "
                        f"{known.category}"
                    )
                rows.append((*_way_and_shot(path), int(path.stem), split, item.object_id, label))
        tables = {"episodes": episode_table(rows)}
        return published_listing(card, items.values(), shuffle=False, tables=tables)

    def load(self, item: Item) -> Sample:
        """Return one cloud."""
        name, row = split_reference(item.file)
        file, _, split = name.rpartition("#")
        cloud = _RECENT.get(Path(self.folder) / file)[split][row][0]
        return Sample(cloud_with_normals(cloud, f"{self.folder}/{item.file}"))


def _episode(folder: Path, path: Path) -> Iterator[tuple[str, int, Item]]:
    """Return the split, the label within the episode and the item of each of its clouds."""
    (way, _), classes = _way_and_shot(path), CARDS["fewshot"].classes
    file, size = path.relative_to(folder).as_posix(), path.stat().st_size
    for split, samples in _RECENT.get(path).items():
        for row, (cloud, label, original) in enumerate(samples):
            where = f"{path}: its {split} sample {row}"
            if not 0 <= label < way:
                raise DataError(f"{where} has label {label}, not one of 0 to {way - 1}")
            if not 0 <= original < len(classes):
                raise DataError(f"{where} is of the unknown class {original}")
            # The split is part of the id: a cloud in both splits is a row of each.
            content = np.ascontiguousarray(cloud).tobytes()
            object_id = f"{split}_{hashlib.sha256(content).hexdigest()[:24]}"
            category, name = classes[original], f"{file}#{split}#{row}"
            entry = class_entry(object_id, split, category, classes, name, size)
            assert isinstance(entry, Item)  # its class is known
            yield split, label, entry


def _pickles(root: Path) -> list[Path]:
    found = [
        path
        for path in visible(root, "*way_*shot/*.pkl")
        if FOLDER.fullmatch(path.parent.name) and path.stem.isdigit()
    ]
    return sorted(found, key=lambda path: (*_way_and_shot(path), int(path.stem)))


def _way_and_shot(path: Path) -> tuple[int, int]:
    way, shot = re.findall(r"\d+", path.parent.name)
    return int(way), int(shot)


def _read(path: Path) -> dict[str, list[tuple[Any, int, int]]]:
    """Read one episode as (cloud, label, label of ModelNet40) of each split.

    Raises:
        DataError: If the pickle holds something else.
    """
    content = load_pickle(path)
    try:
        return {
            split: [(cloud, _number(label), _number(own)) for cloud, label, own in content[split]]
            for split in SPLITS
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: is not an episode, a dict of train and test with (cloud, label, label of "
            f"ModelNet40) entries ({type(error).__name__}: {error})"
        ) from error


def _number(value: Any) -> int:  # noqa: ANN401 - an int or an array of one
    return int(np.asarray(value).reshape(()))


_RECENT = RecentFiles(_read)
