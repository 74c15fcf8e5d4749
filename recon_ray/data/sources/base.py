"""Interface of data sources: list the samples without loading them, load one on request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import pyarrow as pa

    from recon_ray.data.readers.meshes import Shape
    from recon_ray.data.sources.cards import Card

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
        category: Class name, empty without a class.
        label: Index into the listing's classes, -1 without a class.
        caption: Text of the sample, may be empty.
        file: Path relative to the source's folder; named in messages. A row inside a file is
            ``train.h5#17``.
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
class Excluded:
    """A found or listed sample that is left out by rule.

    Attributes:
        object_id: Id that the sample would have had.
        file: Path relative to the source's folder.
        reason: Why, as a sentence for the user.
    """

    object_id: str
    file: str
    reason: str


@dataclass(frozen=True)
class Features:
    """Teacher features that a source ships with its samples.

    Attributes:
        image: (V, D) of a sample's image features, None without them. Samples with fewer than V
            are filled up with zeros.
        text: (T, D) likewise, of its texts.
        teacher: Name of the model that computed them.
    """

    image: tuple[int, int] | None = None
    text: tuple[int, int] | None = None
    teacher: str = ""


@dataclass(frozen=True)
class Listing:
    """All samples of a source.

    Attributes:
        items: The samples, of a large source in columns
            (:class:`recon_ray.data.sources.items.Items`); their order matters only if ``shuffle``
            is false.
        classes: Class names in label order.
        settings: Whatever else decides the content (seeds, fractions); part of the plan's hash.
        license_note: Known terms of the data.
        card: Facts about the published set, None if it is not one.
        up_axis: Axis that points up in the source's files: x, y or z.
        num_points: Points of a sample by default.
        sampling: How a larger cloud is reduced: ``random``, or ``fps``, farthest points from a
            random first one, as the reference's ModelNet cache.
        shuffle: Mix the samples of a split; false keeps the order of ``items``.
        keeps_all_points: Clouds vary in size and keep all their points, up to ``num_points``.
        part_labels: The shapes carry a part label for every point.
        excluded: Samples that are left out by rule; they do not count as unreadable.
        tables: Small tables to write beside the samples, by name.
        features: Shapes of the teacher features that the samples carry, None if they carry none.
        held_bytes: Memory that each process needs for files which are read whole to load a sample.
    """

    items: Iterable[Item]
    classes: tuple[str, ...] = ()
    settings: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    license_note: str = ""
    card: Card | None = None
    up_axis: str = "y"
    num_points: int = 2048
    sampling: Literal["random", "fps"] = "random"
    shuffle: bool = True
    keeps_all_points: bool = False
    part_labels: bool = False
    excluded: tuple[Excluded, ...] = ()
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    features: Features | None = None
    held_bytes: int = 0


@dataclass(frozen=True)
class Sample:
    """One loaded sample.

    Attributes:
        shape: Mesh or cloud in the source's coordinates.
        caption: Replaces the item's caption unless None.
        image_features: (V, D) teacher features that the source ships, None if it ships none.
        text_features: (T, D) likewise, of the sample's texts.
    """

    shape: Shape
    caption: str | None = None
    image_features: np.ndarray | None = None
    text_features: np.ndarray | None = None


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

    def load(self, item: Item) -> Sample:
        """Load one sample of the listing, without its pictures.

        Raises:
            DataError: If the sample is missing or damaged; it is left out, with this reason.
        """
        ...
