"""Facts about the published data sets: classes, sizes, axes, terms, hashes of their lists.

The facts themselves are in ``cards.yaml`` beside this module.
"""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDTH = 100
NORMALIZATION = {
    "whole": "every cloud is centered and scaled to the unit sphere before points are chosen",
    "subset": "points are chosen first, then centered and scaled to the unit sphere",
    "none": "none: coordinates are used as they are",
}
PICTURES = (
    "prepared with protocol=reference as the published reader saw them, without transparency and "
    "stretched to {side} x {side}; otherwise laid on white and padded to a square"
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """Facts about a published data set.

    Attributes:
        name: Name of the source that reads it.
        title: Name in the literature.
        classes: Class names in label order; empty if it has none.
        texts: Text of each class in prompts.
        counts: Published number of samples of each split.
        num_points: Points of a sample in the published experiments.
        picture_side: Side of the square to which the published code stretches the set's own
            pictures, read without their transparency; None if it has none.
        up_axis: The axis that points up in the published clouds.
        normalization: When a cloud is centered and scaled to the unit sphere: ``whole``, before the
            points of a step are chosen; ``subset``, after that; ``none``, never.
        variants: The layouts in which it is offered and read.
        license: Terms of use, in short.
        url: The publisher's page.
        lists: SHA-256 of the official split lists by file name.
        parts: Part numbers of every class, for part segmentation.
        notes: Further facts for the user.
    """

    name: str
    title: str
    classes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    num_points: int
    picture_side: int | None = None
    up_axis: str = "y"
    normalization: Literal["whole", "subset", "none"]
    variants: tuple[str, ...] = ()
    license: str
    url: str
    lists: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: str = ""


def _card(name: str, facts: dict[str, Any]) -> Card:
    synsets = facts.pop("synsets", {})
    parts = {label: tuple(numbers) for label, numbers in facts.pop("parts", {}).items()}
    default = [text.split(",")[0] for text in synsets.values()] or list(parts)
    classes = tuple(facts.pop("classes", default))
    texts = tuple(synsets.values()) or classes
    variants = tuple(facts.pop("variants"))
    return Card(name=name, classes=classes, texts=texts, parts=parts, variants=variants, **facts)


def load_facts(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file of this package."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first is four times as fast
    return loader(path.read_text(encoding="utf-8")).get_single_data()


_FACTS = load_facts(Path(__file__).with_name("cards.yaml"))
#: Synsets of ShapeNet-55 in label order.
SYNSETS = tuple(_FACTS["shapenet55"]["synsets"])
#: The cards by the name of the source.
CARDS = {name: _card(name, facts) for name, facts in _FACTS.items()}


def describe(card: Card) -> str:
    """Return a card as text to read."""
    lines = {
        "samples": ", ".join(f"{split} {count:,}" for split, count in card.counts.items())
        or "as many as the folder holds",
        "points": f"{card.num_points:,} a shape, {card.up_axis} up",
        "normalization": NORMALIZATION[card.normalization],
        "pictures": "" if card.picture_side is None else PICTURES.format(side=card.picture_side),
        "layouts": "; ".join(card.variants),
        "classes": _named_classes(card),
        "parts": f"{sum(map(len, card.parts.values()))} in all" if card.parts else "",
        "lists": "; ".join(f"{name} sha256 {value[:12]}" for name, value in card.lists.items()),
        "license": card.license,
        "from": card.url,
        "notes": card.notes,
    }
    body = [
        textwrap.fill(
            text,
            WIDTH,
            initial_indent=f"  {name:<14}",
            subsequent_indent=" " * 16,
            break_on_hyphens=False,
        )
        for name, text in lines.items()
        if text
    ]
    return "\n".join([f"{card.name}: {card.title}", *body])


def _named_classes(card: Card) -> str:
    if not card.classes:
        return "none"
    pairs = zip(card.classes, card.texts, strict=True)
    names = [name if text == name else f"{name} ({text})" for name, text in pairs]
    return f"{len(names)}: {'; '.join(names)}"


def as_record(card: Card) -> dict[str, Any]:
    """Return a card as plain values that JSON can hold."""
    record = asdict(card)
    record["parts"] = {name: list(parts) for name, parts in card.parts.items()}
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in record.items()
    }
