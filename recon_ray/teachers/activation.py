"""Activation of CLIP's towers, which no file of weights tells: GELU or QuickGELU.

OpenAI's models and some others use QuickGELU. open_clip and timm have an architecture of either
kind for each, and weights fit both.
"""

from __future__ import annotations

import logging

from recon_ray.errors import TeacherNameError
from recon_ray.teachers.specification import GELU, Specification
from recon_ray.teachers.weights_file import WeightsFile

logger = logging.getLogger(__name__)


def choose_architecture(
    specification: Specification, file: WeightsFile, *, quick: str | None, known: bool | None
) -> str:
    """Return the architecture whose activation is that of the weights.

    Args:
        specification: The teacher.
        file: The weights.
        quick: Architecture with QuickGELU that equals the named one otherwise; None without one,
            as for an architecture with QuickGELU.
        known: Whether the weights are of a model with QuickGELU; None where only the
            specification can tell, by the architecture, or ``gelu:`` before the file.

    Raises:
        TeacherNameError: If nothing tells, or the specification contradicts itself.
    """
    family, arch, source = specification.family, specification.arch, specification.source
    if quick is None:
        if file.is_gelu:
            raise TeacherNameError(
                f"Teacher {specification.text!r}: only an architecture that has a twin with "
                f"QuickGELU needs {GELU}: before a file, {arch} has none; leave it out."
            )
        return arch
    if known:
        logger.warning(
            "The weights %s were trained with QuickGELU, which %s does not use: it is built with "
            "QuickGELU instead; name the architecture %s to silence this.", file.tag, arch, quick,
        )  # fmt: skip
        return quick
    if known is None and not file.is_gelu:
        raise TeacherNameError(
            f"Teacher {specification.text!r}: the file does not record its activation "
            f"(QuickGELU as OpenAI's weights need or GELU as {arch} has), and features differ; set "
            f"{family}:{quick}:{source} or {family}:{arch}:{GELU}:{source}, or put the published "
            "tag of the weights before the file (<tag>:<file>)."
        )
    return arch
