"""Teacher specifications such as ``open_clip:ViT-B-32-quickgelu:openai``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from recon_ray.errors import TeacherNameError

FAMILIES = ("open_clip", "timm", "descriptor", "table")
#: Stands before a file in place of a tag: its weights are of no published kind and use GELU.
GELU = "gelu"
WEIGHT_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".tar"})


@dataclass(frozen=True)
class Specification:
    """A teacher's name, taken apart.

    Attributes:
        text: The whole string.
        family: ``open_clip``, ``timm``, ``descriptor`` or ``table``.
        arch: Architecture; the width for ``descriptor``, the file for ``table``; may be empty.
        source: The rest: empty, a tag, a file, ``tag:file`` or ``gelu:file``.
    """

    text: str
    family: str
    arch: str
    source: str

    @property
    def name(self) -> str:
        """Family and architecture, without the weights."""
        return f"{self.family}:{self.arch}" if self.arch else self.family


def parse_specification(text: str) -> Specification:
    """Take a specification apart.

    Raises:
        TeacherNameError: If the family is unknown or the architecture is missing.
    """
    family, _, rest = text.partition(":")
    arch, _, source = rest.partition(":")
    if family not in FAMILIES:
        raise TeacherNameError(
            f"Teacher {text!r} is unknown; give open_clip:<arch>:<tag or file>, "
            "timm:<arch>:<tag or file>, descriptor or table:<file>."
        )
    if family != "descriptor" and not arch:
        raise TeacherNameError(
            f"Teacher {text!r} names no architecture; give {family}:<arch>:<tag>."
        )
    return Specification(text=text, family=family, arch=arch, source=source)


def parse_source(
    specification: Specification, tags: Collection[str]
) -> tuple[str | None, Path | None]:
    """Distinguish a published tag from a local file.

    Args:
        specification: The teacher.
        tags: Published tags of its architecture; ``tag:file`` states that a local file is the one
            published under a tag, ``gelu:file`` that it is another one whose model uses GELU.

    Returns:
        Tag (or :data:`GELU`) and file, one of them, or neither where there are no weights.

    Raises:
        TeacherNameError: If it is neither a known tag nor an existing file.
    """
    source = specification.source
    if not source or source in tags:
        return source or None, None
    if Path(source).is_file():
        return None, Path(source)
    tag, _, file = source.partition(":")
    if tag in tags or (file and tag == GELU):
        if not Path(file).is_file():
            raise TeacherNameError(f"Teacher {specification.text!r}: there is no file {file}.")
        return tag, Path(file)
    if Path(source).suffix in WEIGHT_SUFFIXES or "/" in source:
        raise TeacherNameError(
            f"Teacher {specification.text!r}: there is no file {source}; give the path of a file "
            "of weights, or use the teacher 'descriptor'."
        )
    known = ", ".join(sorted(tags)) or "none"
    raise TeacherNameError(
        f"Teacher {specification.text!r}: {source!r} is neither a published tag of "
        f"{specification.arch} (known: {known}) nor a file; give one of these."
    )
