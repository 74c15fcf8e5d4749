"""The user's own folder of meshes or clouds, with classes from sub-folders or from a table.

Folder layouts: ``file``, ``class/file``, ``split/class/file`` and ``class/split/file``; a split is
recognised by the names train, test, val and their long forms, and deeper folders in a class are
allowed. A table (CSV or Parquet) replaces the layout: ``file`` relative to the folder, or to the
only folder in it, and perhaps ``caption``, ``category`` or ``label``, ``split``, ``image`` (one or
several, separated by ``;``) and ``object_id``.
"""

from __future__ import annotations

import csv
import logging
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recon_ray.data.format.files import visible
from recon_ray.data.readers.meshes import SHAPE_SUFFIXES, load_shape, sample_generator
from recon_ray.data.sources.base import SPLIT_ALIASES, Item, Listing, Sample
from recon_ray.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

COLUMNS = ("file", "caption", "category", "label", "split", "image", "object_id")
TEXT_SUFFIXES = (".txt", ".npz", ".npy")  # may be lists, notes or tables beside the shapes


@dataclass(frozen=True)
class CustomSource:
    """A folder of shape files.

    Attributes:
        folder: Folder of the files.
        table: CSV or Parquet file that lists them; None to go by the folders.
        test_fraction: Part of every class for testing where no split is given.
        seed: Seed of that choice.
        license_note: Known terms; kept in the manifest.
    """

    folder: Path
    table: Path | None = None
    test_fraction: float = 0.1
    seed: int = 0
    license_note: str = ""
    name: str = "custom"

    def __post_init__(self) -> None:
        if not 0 <= self.test_fraction < 1:
            raise ConfigError(
                f"prepare.test_fraction: expected 0 or more and under 1, found {self.test_fraction}"
            )

    def scan(self) -> Listing:
        """List the files.

        Raises:
            DataError: If the folder or the table is missing, empty or contradicts itself.
        """
        folder = Path(self.folder)
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; set input to the folder of your shapes")
        found = self._from_folder(folder) if self.table is None else self._from_table(folder)
        items, classes = _labeled(found)
        settings: dict[str, str | int | float | bool | None] = {"table": self.table is not None}
        if _splits_missing(items):
            items = _random_split(items, self.test_fraction, self.seed)
            settings |= {"test_fraction": self.test_fraction, "seed": self.seed}
        logger.info("custom source: %d files, %d classes in %s", len(items), len(classes), folder)
        return Listing(tuple(items), classes, settings, self.license_note)

    def load(self, item: Item) -> Sample:
        """Read one shape."""
        return Sample(load_shape(Path(self.folder) / item.file))

    def _from_folder(self, folder: Path) -> list[Item]:
        files = [p.relative_to(folder) for p in visible(folder, "**/*") if _is_shape(p)]
        files = _without_notes(files)
        if not files:
            raise DataError(
                f"{folder}: holds no shape files; expected one of {' '.join(SHAPE_SUFFIXES)}"
            )
        layout = _layout(files)
        return [_folder_item(folder, file, layout) for file in files]

    def _from_table(self, folder: Path) -> list[Item]:
        table = Path(self.table or "")
        rows = _read_rows(table)
        prefix = _table_prefix(folder, rows)
        items = [
            _table_item(folder, prefix, row, f"{table} row {number}")
            for number, row in enumerate(rows, 1)
        ]
        missing = [item.file for item in items if item.size_bytes < 0]
        if missing:
            shown = ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
            logger.warning(
                "%s: %d of %d files are missing: %s", table, len(missing), len(items), shown
            )
        return items


# Folders


def packed_folder(folder: Path) -> Path:
    """Return the folder from which an archive was made: ``zip -r a.zip shapes`` packs its name too.

    It is the only folder in the unpacked archive if there are no other shapes and it is not a
    split; else the unpacked archive itself.
    """
    inside = [
        path
        for path in visible(folder, "*")
        if path.is_dir() or (_is_shape(path) and path.suffix.lower() not in TEXT_SUFFIXES)
    ]
    only = inside[0] if len(inside) == 1 else folder
    return only if only.is_dir() and only.name.lower() not in SPLIT_ALIASES else folder


def _is_shape(path: Path) -> bool:
    return path.suffix.lower() in SHAPE_SUFFIXES and path.is_file()


def _without_notes(files: list[Path]) -> list[Path]:
    """Drop lists and notes above the class folders (``train.txt``, ``README.txt``)."""
    nested = any(len(file.parts) > 1 for file in files)
    notes = [f for f in files if nested and len(f.parts) == 1 and f.suffix.lower() in TEXT_SUFFIXES]
    if notes:
        logger.warning("ignored beside the folders: %s", ", ".join(map(str, notes[:10])))
    return [file for file in files if file not in set(notes)]


def _layout(files: list[Path]) -> str:
    """Return the place of the split in the paths: ``first`` folder, ``second`` or ``none``.

    Raises:
        DataError: If some classes are divided into splits and others are not.
    """
    folders = [[part.lower() for part in file.parts[:-1]] for file in files]
    if all(parts and parts[0] in SPLIT_ALIASES for parts in folders):
        return "first"
    divided = [len(parts) > 1 and parts[1] in SPLIT_ALIASES for parts in folders]
    if all(divided):
        return "second"
    if any(divided):
        inside, outside = files[divided.index(True)], files[divided.index(False)]
        raise DataError(
            f"{inside} lies in a split's folder, but {outside} does not; divide all classes or none"
        )
    return "none"


def _folder_item(folder: Path, file: Path, layout: str) -> Item:
    parts = list(file.parts[:-1])
    split = ""
    if layout != "none":
        split = SPLIT_ALIASES[parts.pop(0 if layout == "first" else 1).lower()]
    category = parts[0] if parts else ""
    return Item(
        object_id=file.with_suffix("").as_posix(),
        split=split,
        category=category,
        caption=category.replace("_", " "),
        file=file.as_posix(),
        size_bytes=(folder / file).stat().st_size,
    )


# Tables


def _read_rows(table: Path) -> list[dict[str, str]]:
    if not table.is_file():
        raise DataError(f"{table}: no such table")
    try:
        rows = _parquet_rows(table) if table.suffix.lower() == ".parquet" else _csv_rows(table)
    except (pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as CSV or Parquet ({error})") from error
    if not rows:
        raise DataError(f"{table}: has no rows")
    names = list(rows[0])
    if "file" not in names:
        raise DataError(f"{table}: has no column 'file', only {', '.join(names)}")
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        logger.warning("%s: ignored unknown columns: %s", table, ", ".join(unknown))
    return rows


def _csv_rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restkey="(beyond the header)", restval="")
        return [{k.strip(): str(v).strip() for k, v in row.items()} for row in reader]


def _parquet_rows(table: Path) -> list[dict[str, str]]:
    rows = pq.read_table(table).to_pylist()
    return [{k: "" if v is None else str(v).strip() for k, v in row.items()} for row in rows]


def _table_prefix(folder: Path, rows: list[dict[str, str]]) -> str:
    """Return the missing first part of a table's paths: none, or the name of the only folder."""
    inside = packed_folder(folder)
    files = [row["file"] for row in rows if row["file"]]
    if inside == folder or any((folder / file).is_file() for file in files):
        return ""
    return f"{inside.name}/" if any((inside / file).is_file() for file in files) else ""


def _table_item(folder: Path, prefix: str, row: dict[str, str], where: str) -> Item:
    file = row["file"]
    if not file:
        raise DataError(f"{where}: column 'file' is empty")
    split = row.get("split", "").lower()
    if split and split not in SPLIT_ALIASES:
        raise DataError(f"{where}: split is {split!r}; expected train, val or test")
    category = row.get("category", "")
    path = folder / f"{prefix}{file}"
    images = [part.strip() for part in row.get("image", "").split(";") if part.strip()]
    return Item(
        object_id=row.get("object_id") or Path(file).with_suffix("").as_posix(),
        split=SPLIT_ALIASES[split] if split else "",
        category=category,
        label=_label(row.get("label", ""), where),
        caption=row.get("caption") or category.replace("_", " "),
        file=f"{prefix}{file}",
        images=tuple(f"{prefix}{image}" for image in images),
        size_bytes=path.stat().st_size if path.is_file() else -1,
    )


def _label(text: str, where: str) -> int:
    if not text:
        return -1
    # Data frames write 3.0; -1 stands for no label.
    if not re.fullmatch(r"-1|[0-9]{1,5}(\.0*)?", text):
        raise DataError(f"{where}: label is {text!r}; expected an integer from 0 to 99999")
    return int(float(text))


# Labels and splits


def _splits_missing(items: list[Item]) -> bool:
    """Return whether no item has a split.

    Raises:
        DataError: If some have one and others do not.
    """
    without = [item.file for item in items if not item.split]
    if without and len(without) < len(items):
        raise DataError(
            f"{without[0]}: has no split, but other rows have one; give all a split, or none"
        )
    return bool(without)


def _labeled(items: list[Item]) -> tuple[list[Item], tuple[str, ...]]:
    """Number the classes, by their given labels or else alphabetically.

    Raises:
        DataError: If a label names two categories or a category has two labels.
    """
    if any(item.label >= 0 for item in items):
        return _by_given_labels(items)
    classes = tuple(sorted({item.category for item in items if item.category}))
    numbers = {name: number for number, name in enumerate(classes)}
    return [replace(item, label=numbers.get(item.category, -1)) for item in items], classes


def _by_given_labels(items: list[Item]) -> tuple[list[Item], tuple[str, ...]]:
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    for item in items:
        if item.label < 0:
            if item.category:
                raise DataError(f"{item.file}: has a category but no label; give all rows labels")
            continue
        name = item.category or str(item.label)
        if names.setdefault(item.label, name) != name:
            raise DataError(
                f"{item.file}: label {item.label} is {name!r} here, {names[item.label]!r} elsewhere"
            )
        if labels.setdefault(name, item.label) != item.label:
            raise DataError(
                f"{item.file}: category {name!r} is {item.label} here, {labels[name]} elsewhere"
            )
    # Unused numbers would be classes without a sample; ids of a catalogue leave thousands.
    numbers = {label: number for number, label in enumerate(sorted(names))}
    if len(names) <= max(names):
        logger.warning(
            "the labels go up to %d, but only %d are used: they are numbered anew in their order, "
            "from 0; the classes keep their names, or the labels as names",
            max(names),
            len(names),
        )
    numbers[-1], names[-1] = -1, ""  # of items without a label
    labeled = [replace(i, label=numbers[i.label], category=names[i.label]) for i in items]
    return labeled, tuple(names[label] for label in sorted(names) if label >= 0)


def _random_split(items: list[Item], test_fraction: float, seed: int) -> list[Item]:
    """Put a seeded part of every class into the test split; every class keeps a training sample."""
    groups: dict[int, list[str]] = defaultdict(list)
    for item in items:
        groups[item.label].append(item.object_id)
    tested: set[str] = set()
    for label, ids in groups.items():
        count = min(round(test_fraction * len(ids)), len(ids) - 1)
        order = sample_generator(seed, f"split of {label}").permutation(len(ids))
        ids = sorted(ids)
        tested.update(ids[i] for i in order[:count])
    return [replace(i, split="test" if i.object_id in tested else "train") for i in items]
