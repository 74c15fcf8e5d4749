"""The embedded data set: procedural objects with captions and colors, nothing to download.

Every shape is a function of (seed, category, index): parameters and colors are drawn uniformly, the
parts are assembled, and the whole is turned by a random angle about the vertical axis. Captions
name the color and what is extreme about a shape: "a tall red chair with thin legs".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from recon_ray.data.readers.meshes import Shape, sample_generator
from recon_ray.data.sources.base import Item, Listing, Sample
from recon_ray.data.sources.procedural.categories import CATEGORIES, Category
from recon_ray.data.sources.procedural.primitives import Color, join, turn
from recon_ray.errors import ConfigError, DataError

VERSION = 1  # raised whenever the same seed gives other shapes, so that old sets are not continued
PALETTE: dict[str, Color] = {
    "red": (200, 45, 40),
    "orange": (230, 130, 40),
    "yellow": (225, 200, 60),
    "green": (60, 145, 70),
    "blue": (50, 95, 190),
    "purple": (130, 70, 160),
    "pink": (230, 140, 175),
    "brown": (130, 85, 50),
    "gray": (140, 140, 145),
    "white": (225, 225, 222),
}
COLOR_SPREAD = 18  # levels of 255 by which a color varies around its palette entry


@dataclass(frozen=True)
class SyntheticSource:
    """Procedural objects of sixteen categories.

    Attributes:
        seed: Seed of every shape.
        train_per_class: Shapes of each category in the training split.
        test_per_class: Shapes of each category in the test split.
        categories: Which categories, in label order.
    """

    seed: int = 0
    train_per_class: int = 40
    test_per_class: int = 10
    categories: tuple[str, ...] = tuple(CATEGORIES)
    name: str = "synthetic"

    def __post_init__(self) -> None:
        unknown = [name for name in self.categories if name not in CATEGORIES]
        if unknown:
            known = ", ".join(CATEGORIES)
            raise ConfigError(
                f"synthetic source: unknown category {unknown[0]!r}; choose from {known}"
            )
        if self.train_per_class < 0 or self.test_per_class < 0:
            raise ConfigError(
                "synthetic source: the numbers of shapes per class must not be negative"
            )

    def scan(self) -> Listing:
        """List the shapes; the first ``train_per_class`` of every category are for training."""
        train = self.train_per_class
        items = tuple(
            Item(
                f"{category}_{index:04d}",
                "train" if index < train else "test",
                category,
                label,
                file=f"{category}:{index}",
            )
            for label, category in enumerate(self.categories)
            for index in range(train + self.test_per_class)
        )
        if not items:
            raise DataError("synthetic source: asked for no shapes; raise the number per class")
        settings: dict[str, str | int | float | bool | None] = {
            "version": VERSION,
            "seed": self.seed,
            "train_per_class": train,
            "test_per_class": self.test_per_class,
            "categories": ",".join(self.categories),
        }
        terms = "procedural, made by this package; no terms"
        return Listing(items, self.categories, settings, terms)

    def load(self, item: Item) -> Sample:
        """Make one shape."""
        category, index = item.file.split(":")
        shape, caption = make_shape(category, int(index), self.seed)
        return Sample(shape, caption=caption)


def make_shape(category: str, index: int, seed: int = 0) -> tuple[Shape, str]:
    """Make a shape of a category, a colored mesh with y up, and its caption."""
    kind = CATEGORIES[category]
    generator = sample_generator(seed, f"{category}:{index}")
    position = dict(zip(kind.ranges, generator.random(len(kind.ranges)), strict=True))
    ranges = kind.ranges.items()
    values = {name: low + (high - low) * position[name] for name, (low, high) in ranges}
    names = list(PALETTE)
    first, second = generator.permutation(len(names))[:2]
    spread = generator.uniform(-COLOR_SPREAD, COLOR_SPREAD, (2, 3))
    main, accent = (
        _vary(PALETTE[names[i]], s) for i, s in zip((first, second), spread, strict=True)
    )
    shape = join(kind.build(values, main, accent))
    turned, faces = turn((shape.vertices, shape.faces), "y", generator.uniform(0, 360))  # type: ignore[arg-type]
    caption = _caption(category, kind, position, names[first])
    return replace(shape, vertices=turned, faces=faces), caption


def _vary(color: Color, spread: np.ndarray) -> Color:
    red, green, blue = np.clip(np.rint(np.array(color) + spread), 0, 255).astype(int)
    return int(red), int(green), int(blue)


def _caption(category: str, kind: Category, position: Mapping[str, float], color: str) -> str:
    def third(parameter: str, low: str, high: str) -> str:
        place = position[parameter]
        return low if place < 1 / 3 else high if place > 2 / 3 else ""

    words = [word for word in (third(*kind.size), color, category) if word]
    article = "an" if words[0][0] in "aeiou" else "a"
    text = f"{article} {' '.join(words)}"
    phrase = third(*max(kind.details, key=lambda entry: abs(position[entry[0]] - 0.5)))
    return f"{text} with {phrase}" if phrase else text
