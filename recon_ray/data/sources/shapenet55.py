"""ShapeNet-55: a cloud and a picture of every shape, two lists, and the texts of the classes.

``shapenet_pc/<synset>-<model>.npy``, ``shapenet_img/<synset>-<model>.png``,
``ShapeNet-55/{train,test}.txt`` with a file name a line, and ``shapenet55.json``, a table by
columns whose row number is the label.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon_ray.data.prepare.render import load_image
from recon_ray.data.readers.meshes import load_shape
from recon_ray.data.sources.base import Excluded, Item, Listing, Sample
from recon_ray.data.sources.cards import CARDS
from recon_ray.data.sources.class_names import SHAPENET55
from recon_ray.data.sources.layout import (
    check_counts,
    check_disjoint,
    check_lists,
    file_sizes,
    find_root,
    read_json_file,
    read_list,
    report,
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
        items, excluded = _Scan(folder, root, read_texts(root)).items(lines)
        report(card.title, items, excluded)
        check_counts(card, items)
        return Listing(
            tuple(items),
            card.classes,
            license_note=card.license,
            card=card,
            up_axis=card.up_axis,
            num_points=card.num_points,
            excluded=tuple(excluded),
        )

    def load(self, item: Item, image_size: int | None = None) -> Sample:
        """Read one cloud and, where it is wanted, its picture."""
        folder = Path(self.folder)
        shape = load_shape(folder / item.file)
        wanted = item.images if image_size is not None else ()
        return Sample(shape, tuple(load_image(folder / i, int(image_size or 0)) for i in wanted))


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
        return {synset: (label, text) for label, (synset, text) in enumerate(SHAPENET55)}
    table = read_json_file(path)
    try:
        # A reader that takes synsets for numbers has lost their leading zero.
        synsets = [str(value).zfill(8) for value in _column(table["catalogue"])]
        texts = [str(value) for value in _column(table["describe"])]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: has no columns catalogue and describe; fetch it again") from error
    published = [synset for synset, _ in SHAPENET55]
    if synsets != published or len(texts) != len(published):
        raise DataError(
            f"{path}: its {len(synsets)} classes are not the {len(published)} of ShapeNet-55 in "
            "their order, so that labels would change; remove it to use the published texts"
        )
    return {synset: (label, texts[label]) for label, synset in enumerate(synsets)}


def _column(values: Any) -> list[Any]:  # noqa: ANN401 - whatever JSON holds
    """Return a column in row order; data frames write {"0": ..., "1": ...}."""
    if isinstance(values, dict):
        return [values[key] for key in sorted(values, key=int)]
    return list(values)


class _Scan:
    """Joins the lists to the files."""

    def __init__(self, folder: Path, root: Path, texts: dict[str, tuple[int, str]]) -> None:
        self.prefix = root.relative_to(folder)
        self.texts = texts
        self.clouds = file_sizes(root / POINTS, ".npy")
        self.pictures = set(file_sizes(root / PICTURES, ".png"))
        self.has_pictures = (root / PICTURES).is_dir()
        if not self.has_pictures:
            logger.warning(
                "%s: no such folder; pictures are rendered from the clouds", root / PICTURES
            )

    def items(self, lines: dict[str, list[str]]) -> tuple[list[Item], list[Excluded]]:
        items: list[Item] = []
        excluded: list[Excluded] = []
        for split, names in lines.items():
            for name in names:
                entry = self._entry(split, name)
                (items if isinstance(entry, Item) else excluded).append(entry)  # type: ignore[arg-type]
        excluded += self._not_listed({name for names in lines.values() for name in names})
        return items, excluded

    def _entry(self, split: str, name: str) -> Item | Excluded:
        stem = name.removesuffix(".npy")
        file = (self.prefix / POINTS / name).as_posix()
        synset = stem.split("-")[0]
        if synset not in self.texts:
            return Excluded(stem, file, f"class {synset} is not one of ShapeNet-55's")
        if name in self.clouds and self.has_pictures and f"{stem}.png" not in self.pictures:
            return Excluded(stem, file, f"no picture of its name in {PICTURES}")
        label, text = self.texts[synset]
        pictures = [self.prefix / PICTURES / f"{stem}.png"] if self.has_pictures else []
        return Item(
            object_id=stem,
            split=split,
            category=CARDS["shapenet55"].classes[label],
            label=label,
            caption=text,
            file=file,
            images=tuple(path.as_posix() for path in pictures),
            size_bytes=self.clouds.get(name, -1),
        )

    def _not_listed(self, listed: set[str]) -> list[Excluded]:
        known = listed | set(self.clouds)
        clouds = [
            Excluded(Path(name).stem, (self.prefix / POINTS / name).as_posix(), "in neither list")
            for name in sorted(set(self.clouds) - listed)
        ]
        pictures = [
            Excluded(
                Path(name).stem,
                (self.prefix / PICTURES / name).as_posix(),
                f"a picture without a cloud of its name in {POINTS}",
            )
            for name in sorted(self.pictures)
            if f"{Path(name).stem}.npy" not in known
        ]
        return clouds + pictures
