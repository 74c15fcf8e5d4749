"""The 60 sentences that a category name is put into before a text teacher reads it."""

from __future__ import annotations

_NOUNS = (
    *("model", "image", "3D model", "rendering model", "point cloud", "point cloud model"),
    *("3D rendering model", "rendering image", "3D rendering image"),
)
PREFIXES = ("", "A ", *(f"A {noun} of {article}" for noun in _NOUNS for article in ("", "a ")))
"""Openings of a prompt; the grammar ("A image") is the reference's, the features depend on it."""

SUFFIXES: tuple[str, ...] = (".", " with white background.", " with black context.")
"""Endings of a prompt."""

NUM_PROMPTS = len(PREFIXES) * len(SUFFIXES)
"""Prompts of one name: 60. A uniform index is a uniform prefix and a uniform suffix."""


def prompt(text: str, index: int) -> str:
    """Put a category name into one prompt.

    Args:
        text: Category name or caption.
        index: 0 to 59; prefix ``index % 20``, suffix ``index // 20`` (the reference's order).

    Raises:
        ValueError: If the index is outside 0 to 59.
    """
    if not 0 <= index < NUM_PROMPTS:
        raise ValueError(f"prompt index is {index}: give one from 0 to {NUM_PROMPTS - 1}.")
    return PREFIXES[index % len(PREFIXES)] + text + SUFFIXES[index // len(PREFIXES)]


def prompts(text: str) -> list[str]:
    """Put a category name into all 60 prompts, in the reference's order (see :func:`prompt`)."""
    return [prompt(text, index) for index in range(NUM_PROMPTS)]
