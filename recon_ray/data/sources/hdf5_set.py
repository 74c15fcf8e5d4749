"""Clouds in HDF5 files, several splits and classes: ``*train*.h5`` and ``*test*.h5``.

``shape_names.txt`` names the labels, a line each; ``train_files.txt`` and ``test_files.txt`` may
list the files. ScanObjectNN and one of ModelNet's layouts are of this kind too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recon_ray.data.format.files import visible
from recon_ray.data.readers.hdf5 import read_cloud, read_labels
from recon_ray.data.sources.base import Excluded, Item, Listing, Sample
from recon_ray.data.sources.layout import (
    find_root,
    make_listing,
    read_list,
    row_entries,
    split_reference,
)
from recon_ray.errors import DataError

logger = logging.getLogger(__name__)

NAMES = "shape_names.txt"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Hdf5Source:
    """Any data set in this layout.

    Attributes:
        folder: Folder of the files.
    """

    folder: Path
    name: str = "hdf5"

    def scan(self) -> Listing:
        """List the rows of the files.

        Raises:
            DataError: If there is no such file, or one of them is damaged.
        """
        folder = Path(self.folder)
        root = find_root(folder, has_files, "*train*.h5 or *test*.h5")
        files = split_files(root)
        names = read_list(root / NAMES) if (root / NAMES).is_file() else []
        paths = [path for split in files.values() for path in split]
        highest = max(int(read_labels(path).labels.max(initial=-1)) for path in paths)
        unnamed = (str(label) for label in range(len(names), highest + 1))
        classes = (*names, *unnamed)
        if names and len(names) <= highest:
            logger.warning(
                "%s: names %d classes, but labels go up to %d: the others are called by number",
                root / NAMES,
                len(names),
                highest,
            )
        entries, num_points = list_rows(folder, files, classes, classes)
        return make_listing(f"HDF5 files in {root}", entries, classes, num_points=num_points)

    def load(self, item: Item) -> Sample:
        """Read one cloud."""
        return load_row(Path(self.folder), item)


def has_files(folder: Path) -> bool:
    """Return whether a folder holds HDF5 files of a split."""
    return any(_split(path) for path in visible(folder, "*.h5"))


def split_files(root: Path) -> dict[str, list[Path]]:
    """Return the files of every split: those of the lists beside them, else all by their names.

    Raises:
        DataError: If a name contains two splits, or a list names a file that is not there.
    """
    files: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for path in visible(root, "*.h5"):
        if (split := _split(path)) is None:
            logger.warning("%s: ignored, its name contains no split", path)
        else:
            files[split].append(path)
    for split in SPLITS:
        given = root / f"{split}_files.txt"
        if given.is_file():
            files[split] = [root / Path(line).name for line in read_list(given)]
            missing = [path.name for path in files[split] if not path.is_file()]
            if missing:
                raise DataError(f"{given}: names {missing[0]}, which is not beside it")
    return {split: paths for split, paths in files.items() if paths}


def _split(path: Path) -> str | None:
    found = [split for split in SPLITS if split in path.name.lower()]
    if len(found) > 1:
        raise DataError(
            f"{path}: its name contains two splits, {found[0]} and {found[1]}; rename it"
        )
    return found[0] if found else None


def list_rows(
    folder: Path,
    files: Mapping[str, Sequence[Path]],
    names: Sequence[str],
    classes: Sequence[str],
) -> tuple[list[Item | Excluded], int]:
    """List the rows of the files of every split.

    Args:
        folder: Names in the items are relative to it.
        files: Files of every split.
        names: Class names of the labels in the files.
        classes: Class names in the label order of the set.

    Returns:
        An entry for each row, and the points of a cloud; of the smallest where files differ.

    Raises:
        DataError: If a file is damaged.
    """
    entries: list[Item | Excluded] = []
    sizes: list[int] = []
    for split, paths in files.items():
        for path in paths:
            found = read_labels(path)
            sizes.append(found.num_points)
            relative, size = path.relative_to(folder), path.stat().st_size
            file, stem = relative.as_posix(), relative.with_suffix("").as_posix()
            labels = found.labels.tolist()
            entries += row_entries(file, size, split, labels, names, classes, stem=stem)
    if len(set(sizes)) > 1:
        counts = ", ".join(map(str, sorted(set(sizes))))
        logger.warning("the files hold clouds of %s points", counts)
    return entries, min(sizes, default=0)


def load_row(folder: Path, item: Item) -> Sample:
    """Load the cloud of a row of an HDF5 file.

    Raises:
        DataError: If it cannot be read.
    """
    name, row = split_reference(item.file)
    return Sample(read_cloud(folder / name, row))
