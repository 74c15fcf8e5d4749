"""What a data source is: it lists its samples cheaply and loads one of them on request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from recon_ray.data.meshes import Shape

SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
SPLIT_ORDER = ("train", "val", "test")


@dataclass(frozen=True)
class Item:
    """One sample that a source can load.

    Attributes:
        object_id: Unique in the set; with the seed it decides which points are drawn.
        split: train, val or test.
        category: Class name, empty if there is none.
        label: Index into the listing's classes, -1 if there is none.
        caption: Text of the sample, may be empty.
        file: What the source needs to load it (a path relative to its folder); named in messages.
        images: Pictures of the sample, as paths relative to the source's folder.
        size_bytes: Size of the file, so that a changed file is another plan; -1 if it is missing.
    """

    object_id: str
    split: str
    category: str = ""
    label: int = -1
    caption: str = ""
    file: str = ""
    images: tuple[str, ...] = ()
    size_bytes: int = 0


@dataclass(frozen=True)
class Listing:
    """All samples of a source.

    Attributes:
        items: The samples; their order decides nothing.
        classes: Class names in label order.
        settings: What else decides the content (seeds, fractions); part of the plan's hash.
        license_note: What is known about the terms of the data.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...] = ()
    settings: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    license_note: str = ""


@dataclass(frozen=True)
class Sample:
    """One loaded sample.

    Attributes:
        shape: Mesh or cloud in the source's coordinates.
        images: Pictures, uint8 (H, W, 3), of the size that was asked for; empty if the source has
            none, which makes them be rendered.
        caption: Replaces the item's caption unless None.
    """

    shape: Shape
    images: tuple[np.ndarray, ...] = ()
    caption: str | None = None


class Source(Protocol):
    """A data set that can be prepared. Picklable: it is sent to the processes that build shards."""

    @property
    def name(self) -> str:
        """Name of the source, for the manifest."""
        ...

    def scan(self) -> Listing:
        """List the samples without loading them.

        Raises:
            DataError: If there is nothing to prepare, or the listing contradicts itself.
        """
        ...

    def load(self, item: Item, image_size: int | None = None) -> Sample:
        """Load one sample.

        Args:
            item: An entry of the listing.
            image_size: Side of the pictures in pixels, None if pictures are not wanted.

        Raises:
            DataError: If the sample is missing or damaged; it is left out, with this reason.
        """
        ...
