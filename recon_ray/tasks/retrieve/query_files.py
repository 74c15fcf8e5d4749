"""Queries: words, or a file of a picture, a mesh or a cloud."""

from __future__ import annotations

import os
from pathlib import Path

from recon_ray.data.loading.images import decode_image
from recon_ray.data.prepare.sampling import cloud_of_file
from recon_ray.data.readers.meshes import SHAPE_SUFFIXES
from recon_ray.errors import ConfigError, DataError
from recon_ray.tasks.retrieve.search import Query

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


def read_query(text: str, num_points: int, up_axis: str, seed: int) -> Query:
    """Recognize words or the path of a file, and read it; a mesh is sampled.

    Raises:
        ConfigError: If there is no such file, or its kind is unknown.
        DataError: If it cannot be read.
    """
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - words may begin with an unknown ~name
    suffix = path.suffix.lower()
    is_known = suffix in (*PICTURE_SUFFIXES, *SHAPE_SUFFIXES)
    if not os.path.isfile(path):  # noqa: PTH113 - words may be longer than a name may be
        if is_known:
            raise ConfigError(
                f"query={text}: no such file; give a picture or a shape that is there, or words"
            )
        return Query(text, "words")
    if suffix in PICTURE_SUFFIXES:
        try:
            picture = path.read_bytes()
            decode_image(picture, 0)
        except (DataError, OSError) as error:
            raise DataError(
                f"{path}: is not a readable PNG or JPEG; give another picture"
            ) from error
        return Query(text, "picture", picture=picture)
    if suffix in SHAPE_SUFFIXES:
        points = cloud_of_file(path, up_axis=up_axis, num_points=num_points, seed=seed)
        return Query(text, "shape", points=points)
    raise ConfigError(
        f"query={text}: a file that ends in {suffix or 'nothing'} is neither a picture "
        f"({', '.join(PICTURE_SUFFIXES)}) nor a shape ({', '.join(SHAPE_SUFFIXES)})"
    )
