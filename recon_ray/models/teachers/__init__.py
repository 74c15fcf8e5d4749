"""Frozen image and text encoders behind one protocol, pinned by name, tag and hash.

Specifications are strings: ``open_clip:<arch>[:<tag or file>]`` (image and text),
``timm:<arch>[:<tag or file>]`` (image), ``descriptor[:<width>]`` (image and text, no weights) and
``table:<file>`` (text, looked up).
"""

from __future__ import annotations

from recon_ray.models.teachers.bank import text_bank
from recon_ray.models.teachers.create import create_image_teacher, create_text_teacher
from recon_ray.models.teachers.protocol import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageTeacher,
    TextTeacher,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ImageTeacher",
    "TextTeacher",
    "create_image_teacher",
    "create_text_teacher",
    "text_bank",
]
