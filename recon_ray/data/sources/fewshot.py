"""The published few-shot episodes of ModelNet40: ``{way}way_{shot}shot/{fold}.pkl``.

A pickle holds the training and the test samples of an episode, each a cloud of 8,192 points with
normals, a label within the episode and a label of ModelNet40. A cloud that stands in several
episodes becomes one row; the table of episodes says which rows belong to which.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recon_ray.data.fewshot.draw import episode_table
from recon_ray.data.format.files import visible
from recon_ray.data.readers.file_cache import RecentFiles
from recon_ray.data.readers.pickles import load_pickle
from recon_ray.data.sources.base import Item, Listing, Sample
from recon_ray.data.sources.cards import CARDS
from recon_ray.data.sources.layout import class_item, find_root, report, split_reference
from recon_ray.data.sources.modelnet import cloud_with_normals
from recon_ray.errors import DataError

FOLDER = re.compile(r"\d+way_\d+shot")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class FewshotSource:
    """The pickles of all episodes.

    Attributes:
        folder: Where the folders of the ways and shots lie.
    """

    folder: Path
    name: str = "fewshot"

    def scan(self) -> Listing:
        """Read all episodes and list the clouds that differ.

        Raises:
            DataError: If there are none, or a pickle is damaged or asks for more than arrays.
        """
        folder, card = Path(self.folder), CARDS[self.name]
        root = find_root(
            folder, lambda path: bool(_pickles(path)), "{way}way_{shot}shot/{fold}.pkl"
        )
        scan = _Scan(folder)
        for path in _pickles(root):
            scan.add(path)
        items = tuple(scan.items.values())
        report(card.title, items, ())
        return Listing(
            items,
            card.classes,
            license_note=card.license,
            card=card,
            up_axis=card.up_axis,
            num_points=card.num_points,
            shuffle=False,
            tables={"episodes": episode_table(scan.rows)},
        )

    def load(self, item: Item, image_size: int | None = None) -> Sample:
        """Return one cloud."""
        del image_size
        name, row = split_reference(item.file)
        path = Path(self.folder) / name.rpartition("#")[0]
        split = name.rpartition("#")[2]
        cloud = _RECENT.get(path)[split][row][0]
        return Sample(cloud_with_normals(cloud, f"{self.folder}/{item.file}"))


@dataclass
class _Scan:
    """Collects the clouds and the episodes.

    Attributes:
        folder: Names are relative to it.
        items: The clouds by their content.
        rows: Rows of the table of episodes.
    """

    folder: Path
    items: dict[str, Item] = field(default_factory=dict)
    rows: list[tuple[int, int, int, str, str, int]] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Add the episode of one pickle."""
        way, shot = _way_and_shot(path)
        episode = _RECENT.get(path)
        for split in SPLITS:
            for row, (cloud, label, original) in enumerate(episode[split]):
                if not 0 <= label < way:
                    raise DataError(
                        f"{path}: its {split} sample {row} has label {label}, not one of 0 to "
                        f"{way - 1}"
                    )
                item = self._item(path, split, row, cloud, original)
                self.rows.append((way, shot, int(path.stem), split, item.object_id, label))

    def _item(self, path: Path, split: str, row: int, cloud: np.ndarray, original: int) -> Item:
        # The split is part of the id: a cloud that stood in both would be a row of each.
        object_id = f"{split}_{hashlib.sha256(_bytes(cloud)).hexdigest()[:24]}"
        file = f"{path.relative_to(self.folder).as_posix()}#{split}#{row}"
        classes = CARDS["fewshot"].classes
        if not 0 <= original < len(classes):
            raise DataError(f"{path}: its {split} sample {row} is of the unknown class {original}")
        known = self.items.get(object_id)
        if known is not None and known.label != original:
            raise DataError(
                f"{file}: is {classes[original]}, but the same cloud in {known.file} is "
                f"{known.category}"
            )
        if known is None:
            category, size = classes[original], path.stat().st_size
            known = class_item(object_id, split, category, classes, file, size)
            self.items[object_id] = known
        return known


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


def _bytes(cloud: Any) -> bytes:  # noqa: ANN401 - checked when it is loaded
    return np.ascontiguousarray(cloud).tobytes()


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
