"""Single files of shapes, as clouds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recon_ray.data.prepare.sampling import sample_points
from recon_ray.data.readers.meshes import load_shape, sample_generator, to_y_up


def cloud_of_file(path: Path, *, up_axis: str, num_points: int, seed: int) -> np.ndarray:
    """Read a file as a cloud, y up; a mesh is sampled by area, a cloud keeps all its points.

    Args:
        path: A mesh or a cloud.
        up_axis: Axis that points up in it: x, y or z.
        num_points: Points that are sampled on a mesh.
        seed: Seed of the sampling, which depends on the name of the file too.

    Returns:
        (N, 3).

    Raises:
        DataError: If it cannot be read; the message names it.
    """
    shape = to_y_up(load_shape(path), up_axis)
    if not shape.is_mesh:
        return shape.vertices
    return sample_points(shape, num_points, sample_generator(seed, path.name), str(path)).points
