"""Folders, lists and counts of published data sets."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from recon_ray.data.format.files import is_hidden, visible
from recon_ray.data.sources.base import Excluded, Item, Listing
from recon_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from recon_ray.data.sources.cards import Card

logger = logging.getLogger(__name__)

SHOWN = 10  # names in a log line; all of them are in the quarantine file


def find_root(folder: Path, is_root: Callable[[Path], bool], expected: str) -> Path:
    """Find the folder that holds a data set: the given one, or one of those directly in it.

    The layout is recognised by ``is_root``, and named in messages by ``expected``.

    Raises:
        DataError: If there is no such folder, or there are several.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; set input to the folder of the data set")
    if is_root(folder):
        return folder
    found = [path for path in visible(folder, "*") if path.is_dir() and is_root(path)]
    if not found:
        raise DataError(f"{folder}: expected {expected}, there or one folder down; found neither")
    if len(found) > 1:
        raise DataError(f"{folder}: {found[0].name} and {found[1].name} both fit; give one of them")
    return found[0]


def file_sizes(folder: Path, suffix: str) -> dict[str, int]:
    """Return the size of every file with a suffix in a folder, by name."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {
            entry.name: entry.stat().st_size
            for entry in entries
            if entry.name.lower().endswith(suffix) and not is_hidden(entry.name) and entry.is_file()
        }


def read_list(path: Path) -> list[str]:
    """Read a list with one name a line; blank lines and line endings do not matter.

    Raises:
        DataError: If it is missing, is not text, or names something twice.
    """
    lines = [line.strip() for line in _text(path).splitlines()]
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if line and line in seen:
            raise DataError(f"{path} line {number}: repeats line {seen[line]}, {line}")
        seen[line] = number
    return [line for line in lines if line]


def check_disjoint(lists: Mapping[str, Sequence[str]]) -> None:
    """Check that no two lists, the entries by the list's name, name the same sample.

    Raises:
        DataError: If two do; the message names both and the sample.
    """
    owner: dict[str, str] = {}
    for name, entries in lists.items():
        for entry in entries:
            if entry in owner:
                raise DataError(
                    f"{entry}: is in {owner[entry]} and in {name}; no sample may be in two splits"
                )
        owner |= dict.fromkeys(entries, name)


def read_json_file(path: Path) -> Any:  # noqa: ANN401 - the caller checks the structure
    """Read a JSON file of a data set.

    Raises:
        DataError: If it is missing or not JSON.
    """
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path}: is not readable JSON ({error})") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: the list is missing; the data set is not complete without it"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from error


def class_entry(
    object_id: str, split: str, category: str, classes: Sequence[str], file: str, size: int
) -> Item | Excluded:
    """Return the item of a file, or of a row of it; an exclusion if its class is unknown."""
    if category not in classes:
        reason = f"class {category!r} is not one of the {len(classes)} of the data set"
        return Excluded(object_id, file, reason)
    return Item(
        object_id=object_id,
        split=split,
        category=category,
        label=list(classes).index(category),
        caption=category.replace("_", " "),
        file=file,
        size_bytes=size,
    )


def row_entries(
    file: str,
    size: int,
    split: str,
    labels: Iterable[int],
    names: Sequence[str],
    classes: Sequence[str],
    *,
    stem: str,
) -> Iterator[Item | Excluded]:
    """Return an entry for each row of a file of many clouds.

    Args:
        file: The file, relative to the source's folder.
        size: Its size in bytes.
        split: Split of all rows.
        labels: Label of each row.
        names: Class names of the file's labels; a label without a name is named by its number.
        classes: Class names in the label order of the set.
        stem: First part of the object ids.
    """
    for row, label in enumerate(labels):
        category = names[label] if 0 <= label < len(names) else str(label)
        yield class_entry(f"{stem}_{row:05d}", split, category, classes, f"{file}#{row}", size)


def split_reference(file: str) -> tuple[str, int]:
    """Return the file and the row of ``train.h5#17``."""
    name, _, row = file.rpartition("#")
    return name, int(row)


def check_lists(card: Card, paths: Iterable[Path]) -> None:
    """Warn of every list that is not the official one, by its SHA-256."""
    for path in (path for path in paths if path.name in card.lists):
        if card.lists[path.name] in _hashes(path.read_bytes()):
            logger.info("%s: is the official list", path)
        else:
            logger.warning(
                "%s: is not the official list of %s (another SHA-256); results on it are not "
                "comparable unless this is meant",
                path,
                card.title,
            )


def _hashes(content: bytes) -> set[str]:
    """Hash a list as it is and with other line endings, which tools change."""
    plain = content.replace(b"\r\n", b"\n").rstrip(b"\n")
    texts = [plain, plain + b"\n", plain + b"\n\n"]
    variants = [content, *texts, *(text.replace(b"\n", b"\r\n") for text in texts)]
    return {hashlib.sha256(variant).hexdigest() for variant in variants}


def make_listing(
    title: str,
    entries: Iterable[Item | Excluded],
    classes: Sequence[str],
    **more: Any,  # noqa: ANN401
) -> Listing:
    """Report the samples and exclusions of a set, and list them; ``more`` goes to the listing."""
    found = list(entries)
    items = tuple(entry for entry in found if isinstance(entry, Item))
    excluded = tuple(entry for entry in found if isinstance(entry, Excluded))
    _report(title, items, excluded)
    return Listing(items, tuple(classes), excluded=excluded, **more)


def published_listing(card: Card, entries: Iterable[Item | Excluded], **more: Any) -> Listing:  # noqa: ANN401
    """Report and list the entries of a published set, with the facts of its card or other ones.

    A split without the published number of samples is a warning.
    """
    facts = {"num_points": card.num_points, "up_axis": card.up_axis, "license_note": card.license}
    listing = make_listing(card.title, entries, card.classes, card=card, **{**facts, **more})
    counts = Counter(item.split for item in listing.items)
    for split, count in card.counts.items():
        if counts[split] != count:
            logger.warning(
                "%s: %d samples for %s, but %d were published",
                card.title, counts[split], split, count,
            )  # fmt: skip
    return listing


def _report(title: str, items: Sequence[Item], excluded: Sequence[Excluded]) -> None:
    """Log the numbers of samples, the missing files and the exclusions."""
    splits = Counter(item.split for item in items)
    counts = ", ".join(f"{split} {count}" for split, count in splits.items())
    logger.info("%s: %d samples (%s)", title, len(items), counts)
    missing = [item.file for item in items if item.size_bytes < 0]
    if missing:
        logger.warning("%s: %d files are missing: %s", title, len(missing), _few(missing))
    reasons = Counter(entry.reason for entry in excluded)
    for reason, count in reasons.items():
        names = [entry.object_id for entry in excluded if entry.reason == reason]
        logger.warning("%s: %d left out, %s: %s", title, count, reason, _few(names))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
