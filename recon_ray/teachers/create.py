"""Creation of a teacher from its specification."""

from __future__ import annotations

import logging
from functools import cache

from recon_ray.errors import TeacherNameError
from recon_ray.teachers.descriptor import DescriptorImageTeacher, DescriptorTextTeacher
from recon_ray.teachers.feature_table import create_table_teacher
from recon_ray.teachers.open_clip_towers import (
    create_open_clip_image_teacher,
    create_open_clip_text_teacher,
)
from recon_ray.teachers.protocol import (
    FrozenTeacher,
    ImageTeacher,
    Precision,
    Statistics,
    TextTeacher,
)
from recon_ray.teachers.specification import Specification, parse_specification
from recon_ray.teachers.timm_towers import create_timm_image_teacher
from recon_ray.teachers.weights_file import check_pin

logger = logging.getLogger(__name__)

TOWERS = {"open_clip": create_open_clip_image_teacher, "timm": create_timm_image_teacher}


def create_image_teacher(
    spec: str,
    *,
    sha256: str | None = None,
    statistics: Statistics = "teacher",
    precision: Precision = "fp32",
) -> ImageTeacher:
    """Create a frozen image teacher on the CPU.

    Args:
        spec: ``open_clip:<arch>[:<tag or file>]``, ``timm:<arch>[:<tag or file>]`` or
            ``descriptor[:<width>]``. ``<tag>:<file>`` states that a local file is the one
            published under a tag, ``gelu:<file>`` that it is of a model with GELU, where the
            architecture has a twin with QuickGELU.
            ``timm:vit_base_patch16_224_in21k_prelogits:<file>`` is the teacher of the published
            ReCon.
        sha256: Hash that the weights must have.
        statistics: Normalize with the teacher's own constants, or with ImageNet's for every
            teacher, as the reference did.
        precision: Precision of the forward pass; features are float32 either way.

    Raises:
        TeacherError: If the weights are missing, out of reach, of another architecture, not the
            pinned ones, or of an activation that nothing tells.
    """
    specification = parse_specification(spec)
    teacher: ImageTeacher
    if specification.family == "descriptor":
        teacher = DescriptorImageTeacher(_width(specification))
        check_pin(specification.name, teacher.identity["sha256"], sha256)
    elif specification.family in TOWERS:
        create = TOWERS[specification.family]
        teacher = create(specification, sha256=sha256, statistics=statistics, precision=precision)
    else:
        raise TeacherNameError(
            f"Teacher {spec!r} cannot encode images: a table holds features of texts only; "
            "give open_clip:<arch>:<tag or file>, timm:<arch>:<tag or file> or descriptor."
        )
    _log("image", teacher)
    return teacher


def create_text_teacher(
    spec: str, *, sha256: str | None = None, precision: Precision = "fp32"
) -> TextTeacher:
    """Create a frozen text teacher on the CPU.

    Args:
        spec: ``open_clip:<arch>[:<tag or file>]``, ``descriptor[:<width>]`` or ``table:<file>``
            (features computed elsewhere, see :mod:`recon_ray.teachers.feature_table`).
        sha256: Hash that the weights must have.
        precision: Precision of the forward pass; features are float32 either way.

    Raises:
        TeacherError: As :func:`create_image_teacher`; also for timm, which has no text encoders.
    """
    specification = parse_specification(spec)
    teacher: TextTeacher
    if specification.family == "descriptor":
        teacher = DescriptorTextTeacher(_width(specification))
        check_pin(specification.name, teacher.identity["sha256"], sha256)
    elif specification.family == "open_clip":
        teacher = create_open_clip_text_teacher(specification, sha256=sha256, precision=precision)
    elif specification.family == "table":
        teacher = create_table_teacher(specification, sha256=sha256)
    else:
        raise TeacherNameError(
            f"Teacher {spec!r} cannot encode text: timm has image encoders only; "
            "give open_clip:<arch>:<tag or file>, descriptor or table:<file>."
        )
    _log("text", teacher)
    return teacher


def _width(specification: Specification) -> int:
    """Return the feature width of a descriptor; 256 unless stated."""
    width = specification.arch or "256"
    if not width.isascii() or not width.isdigit() or int(width) < 8 or specification.source:
        raise TeacherNameError(
            f"Teacher {specification.text!r}: give descriptor or descriptor:<width>, "
            "with a width of 8 or more."
        )
    return int(width)


def _log(kind: str, teacher: FrozenTeacher) -> None:
    identity = teacher.identity
    if identity["name"] == "descriptor":
        text = f"{teacher.dim} wide, a weight-free stand-in: not for published numbers"
    else:
        count = sum(parameter.numel() for parameter in teacher.parameters())
        weights = f"weights {identity['tag']}, sha256 {identity['sha256'][:12]}"
        text = f"{weights}, {teacher.dim} wide, {count:,} parameters (frozen)"
    _log_once(f"{kind} teacher {identity['name']}: {text}")


@cache
def _log_once(line: str) -> None:
    """Log a line once a process: a teacher is made for the checks and again to train."""
    logger.info("%s", line)
