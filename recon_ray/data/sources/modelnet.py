"""ModelNet40 and ModelNet10 in the layouts in which they are passed on.

By preference: both ``modelnet40_{train,test}_8192pts_fps.dat`` pickles, the clouds that the
published results were trained on; the text files of ``modelnet40_normal_resampled`` with their
lists; HDF5 files of 2,048 points; ``<class>/{train,test}/`` folders of meshes or PCD clouds.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recon_ray.data.format.files import visible
from recon_ray.data.readers.file_cache import RecentFiles
from recon_ray.data.readers.meshes import Shape, check_shape, load_shape
from recon_ray.data.readers.pickles import load_pickle
from recon_ray.data.readers.text import read_rows
from recon_ray.data.sources.base import Excluded, Item, Listing, Sample
from recon_ray.data.sources.cards import CARDS, Card
from recon_ray.data.sources.hdf5_set import NAMES, has_files, list_rows, load_row, split_files
from recon_ray.data.sources.layout import (
    check_disjoint,
    check_lists,
    class_entry,
    file_sizes,
    find_root,
    published_listing,
    read_list,
    row_entries,
    split_reference,
)
from recon_ray.errors import DataError

logger = logging.getLogger(__name__)

SPLITS = ("train", "test")
SHAPE_FILES = (".off", ".pcd")
TEXT_COLUMNS = 6  # x y z nx ny nz


@dataclass(frozen=True)
class ModelNetSource:
    """ModelNet40 or ModelNet10.

    Attributes:
        folder: Folder with one of the layouts.
        name: modelnet40 or modelnet10.
    """

    folder: Path
    name: str = "modelnet40"

    def scan(self) -> Listing:
        """List the shapes of the layout that is found.

        Raises:
            DataError: If files or a list are missing, or a file of many clouds is damaged.
        """
        folder, card = Path(self.folder), CARDS[self.name]
        expected = f"{self.name}_train.txt, *.dat, *train*.h5 or <class>/train/*.off or *.pcd"
        root = find_root(folder, lambda path: layout(path, card) is not None, expected)
        found = layout(root, card)
        logger.info("%s: %s in %s", card.title, found, root)
        return SCANS[found or ""](folder, root, card)

    def load(self, item: Item) -> Sample:
        """Read one mesh or cloud."""
        folder = Path(self.folder)
        if item.file.endswith(".txt"):
            table = read_rows(folder / item.file, TEXT_COLUMNS, delimiter=",")
            return Sample(cloud_with_normals(table, str(folder / item.file)))
        if "#" not in item.file:
            return Sample(load_shape(folder / item.file))
        name, row = split_reference(item.file)
        if name.endswith(".dat"):
            cloud = _RECENT.get(folder / name)[0][row]
            return Sample(cloud_with_normals(cloud, str(folder / item.file)))
        return load_row(folder, item)


def layout(root: Path, card: Card) -> str | None:
    """Recognise the layout of a folder; None if it is not ModelNet."""
    pickles = [_pickle(root, card, split).is_file() for split in SPLITS]
    if all(pickles):
        return "pickles"
    if any(_list(root, card, split).is_file() for split in SPLITS):
        return "texts"
    if any(pickles):
        return "pickles"
    if has_files(root):
        return "hdf5"
    places = (root / name / split for name in card.classes for split in SPLITS)
    return "shapes" if any(_shape_files(place) for place in places) else None


def _pickle(root: Path, card: Card, split: str) -> Path:
    return root / f"{card.name}_{split}_8192pts_fps.dat"


def _list(root: Path, card: Card, split: str) -> Path:
    return root / f"{card.name}_{split}.txt"


def _shape_files(folder: Path) -> dict[str, int]:
    """Return the shape files of a folder with their sizes; of one type, meshes before clouds."""
    return next((found for end in SHAPE_FILES if (found := file_sizes(folder, end))), {})


# Layouts


def _scan_texts(folder: Path, root: Path, card: Card) -> Listing:
    lists = {split: _list(root, card, split) for split in SPLITS}
    lines = {split: read_list(path) for split, path in lists.items()}
    check_disjoint({str(lists[split]): names for split, names in lines.items()})
    check_lists(card, [*lists.values(), *visible(root, "*_shape_names.txt")])
    names = {name for entries in lines.values() for name in entries}
    classes = {name.rpartition("_")[0] for name in names}
    sizes = {category: file_sizes(root / category, ".txt") for category in classes}
    prefix = root.relative_to(folder)
    entries: list[Item | Excluded] = []
    for split, listed in lines.items():
        for name in listed:
            category = name.rpartition("_")[0]
            file = (prefix / category / f"{name}.txt").as_posix()
            size = sizes[category].get(f"{name}.txt", -1)
            entries.append(class_entry(name, split, category, card.classes, file, size))
    # modelnet10's lists name a part of the same folder: the others are no finding.
    if card.name == "modelnet40":
        entries += _not_listed(prefix, sizes, names)
    return published_listing(card, entries, sampling="fps")


def _not_listed(prefix: Path, sizes: dict[str, dict[str, int]], names: set[str]) -> list[Excluded]:
    return [
        Excluded(Path(file).stem, (prefix / category / file).as_posix(), "in neither list")
        for category, files in sorted(sizes.items())
        for file in sorted(files)
        if Path(file).stem not in names
    ]


def _scan_shapes(folder: Path, root: Path, card: Card) -> Listing:
    entries: list[Item | Excluded] = []
    suffix = ""
    for split_folder in (path for path in visible(root, "*/*") if path.name in SPLITS):
        category, split = split_folder.parent.name, split_folder.name
        for name, size in sorted(_shape_files(split_folder).items()):
            file, stem = (split_folder / name).relative_to(folder).as_posix(), Path(name).stem
            suffix = Path(name).suffix.lower()
            entries.append(class_entry(stem, split, category, card.classes, file, size))
    # The PCD copies that are passed on have 1,024 points.
    more = {"num_points": 1024} if suffix == ".pcd" else {}
    return published_listing(card, entries, up_axis="z", **more)


def _scan_hdf5(folder: Path, root: Path, card: Card) -> Listing:
    names = read_list(root / NAMES) if (root / NAMES).is_file() else card.classes
    entries, num_points = list_rows(folder, split_files(root), names, card.classes)
    return published_listing(card, entries, num_points=num_points)


def _scan_pickles(folder: Path, root: Path, card: Card) -> Listing:
    entries: list[Item | Excluded] = []
    held = 0
    for split in SPLITS:
        path = _pickle(root, card, split)
        if not path.is_file():
            raise DataError(f"{path}: file not found; both splits are needed")
        file, size = path.relative_to(folder).as_posix(), path.stat().st_size
        labels, names = _RECENT.get(path)[1], card.classes
        entries += row_entries(file, size, split, labels, names, names, stem=path.stem)
        held += size
    return published_listing(card, entries, held_bytes=held)


SCANS = {
    "texts": _scan_texts,
    "shapes": _scan_shapes,
    "hdf5": _scan_hdf5,
    "pickles": _scan_pickles,
}


# Pickles


def _read_pickle(path: Path) -> tuple[list[Any], list[int]]:
    """Read a list of clouds and a list of labels, each an array of one number.

    Raises:
        DataError: If the pickle holds something else.
    """
    content = load_pickle(path)
    try:
        clouds, labels = content
        numbers = [int(np.asarray(label).reshape(())) for label in labels]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: is not a pair of clouds and labels ({error})") from error
    if len(clouds) != len(numbers):
        raise DataError(f"{path}: holds {len(clouds)} clouds but {len(numbers)} labels")
    return list(clouds), numbers


_RECENT = RecentFiles(_read_pickle)


def cloud_with_normals(table: Any, name: str) -> Shape:  # noqa: ANN401 - checked here
    """Make a cloud from (n, 3) or (n, 6) numbers, the latter with normals.

    Args:
        table: Array of the numbers; anything else is an error.
        name: Name of the cloud in messages.

    Raises:
        DataError: If it has another shape, or the points are unusable.
    """
    fits = isinstance(table, np.ndarray) and table.ndim == 2 and table.dtype.kind in "fiu"
    if not fits or table.shape[1] not in (3, TEXT_COLUMNS):
        found = f"{table.dtype} {table.shape}" if isinstance(table, np.ndarray) else type(table)
        raise DataError(f"{name}: is {found}; expected numbers of shape (points, 3 or 6)")
    values = table.astype(np.float64)
    shape = Shape(values[:, :3], normals=values[:, 3:] if values.shape[1] == TEXT_COLUMNS else None)
    check_shape(shape, name)
    return shape
