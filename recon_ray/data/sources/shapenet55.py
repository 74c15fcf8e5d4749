"""ShapeNet-55: a cloud and a picture of every shape, two lists, and the texts of the classes.

``shapenet_pc/<synset>-<model>.npy``, ``shapenet_img/<synset>-<model>.png``,
``ShapeNet-55/{train,test}.txt`` with a file name a line, and ``shapenet55.json``, a table by
columns whose row number is the label.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon_ray.data.readers.meshes import load_shape
from recon_ray.data.sources.base import Excluded, Item, Listing, Sample
from recon_ray.data.sources.cards import CARDS, SYNSETS
from recon_ray.data.sources.layout import (
    check_disjoint,
    check_lists,
    file_sizes,
    find_root,
    published_listing,
    read_json_file,
    read_list,
)
from recon_ray.errors import DataError

logger = logging.getLogger(__name__)

POINTS, PICTURES = "shapenet_pc", "shapenet_img"
LISTS = "ShapeNet-55"
TEXTS = "shapenet55.json"


@dataclass(frozen=True)
class ShapeNet55Source:
    """The clouds, pictures and texts of ShapeNet-55.

    Attributes:
        folder: Where they lie.
    """

    folder: Path
    name: str = "shapenet55"

    def scan(self) -> Listing:
        """List the shapes of the two lists that have a picture.

        Raises:
            DataError: If the folder has another layout, or a list is missing.
        """
        folder = Path(self.folder)
        card = CARDS[self.name]
        root = find_root(folder, lambda path: (path / POINTS).is_dir(), f"{POINTS}/ and {LISTS}/")
        lists = {split: root / LISTS / f"{split}.txt" for split in ("train", "test")}
        lines = {split: read_list(path) for split, path in lists.items()}
        check_disjoint({str(lists[split]): names for split, names in lines.items()})
        check_lists(card, lists.values())
        return published_listing(card, _entries(folder, root, lines))

    def load(self, item: Item) -> Sample:
        """Read one cloud."""
        return Sample(load_shape(Path(self.folder) / item.file))


def read_texts(root: Path) -> dict[str, tuple[int, str]]:
    """Return the label and the text of every synset.

    Args:
        root: Folder of the data set; without its table of texts the card's are taken.

    Raises:
        DataError: If the table has no columns of that kind, or other classes than the card.
    """
    path = root / TEXTS
    if not path.is_file():
        logger.info("%s: not there, the published texts are used", path)
        return dict(zip(SYNSETS, enumerate(CARDS["shapenet55"].texts), strict=True))
    table = read_json_file(path)
    try:
        # A reader that takes synsets for numbers has lost their leading zero.
        synsets = [str(value).zfill(8) for value in _column(table["catalogue"])]
        texts = [str(value) for value in _column(table["describe"])]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: has no columns catalogue and describe; fetch it again") from error
    if tuple(synsets) != SYNSETS or len(texts) != len(SYNSETS):
        raise DataError(
            f"{path}: its {len(synsets)} classes are not the {len(SYNSETS)} of ShapeNet-55 in "
            "their order, so that labels would change; remove it to use the published texts"
        )
    return dict(zip(synsets, enumerate(texts), strict=True))


def _column(values: Any) -> list[Any]:  # noqa: ANN401 - whatever JSON holds
    """Return a column in row order; data frames write {"0": ..., "1": ...}."""
    if isinstance(values, dict):
        return [values[key] for key in sorted(values, key=int)]
    return list(values)


def _entries(
    folder: Path, root: Path, lines: Mapping[str, Sequence[str]]
) -> Iterator[Item | Excluded]:
    """Join the lists to the files."""
    texts, classes, prefix = read_texts(root), CARDS["shapenet55"].classes, root.relative_to(folder)
    clouds = file_sizes(root / POINTS, ".npy")
    pictures = set(file_sizes(root / PICTURES, ".png"))
    has_pictures = (root / PICTURES).is_dir()
    if not has_pictures:
        logger.warning("%s: no such folder; pictures are rendered from the clouds", root / PICTURES)
    for split, names in lines.items():
        for name in names:
            stem, file = name.removesuffix(".npy"), (prefix / POINTS / name).as_posix()
            synset = stem.split("-")[0]
            if synset not in texts:
                reason = f"class {synset!r} is not one of the {len(classes)} of the data set"
                yield Excluded(stem, file, reason)
                continue
            if name in clouds and has_pictures and f"{stem}.png" not in pictures:
                yield Excluded(stem, file, f"no picture of its name in {PICTURES}")
                continue
            (label, text), picture = texts[synset], (prefix / PICTURES / f"{stem}.png").as_posix()
            yield Item(
                object_id=stem,
                split=split,
                category=classes[label],
                label=label,
                caption=text,
                file=file,
                images=(picture,) if has_pictures else (),
                size_bytes=clouds.get(name, -1),
            )
    listed = {name for names in lines.values() for name in names}
    for name in sorted(set(clouds) - listed):
        file = (prefix / POINTS / name).as_posix()
        yield Excluded(Path(name).stem, file, "in neither list")
    for name in sorted(pictures):
        stem, file = Path(name).stem, (prefix / PICTURES / name).as_posix()
        if f"{stem}.npy" not in listed and f"{stem}.npy" not in clouds:
            yield Excluded(stem, file, f"a picture without a cloud of its name in {POINTS}")
