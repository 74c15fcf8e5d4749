"""Points drawn from a mesh or chosen from a cloud."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from recon_ray.data.readers.meshes import Shape, face_cross, load_shape, sample_generator, to_y_up
from recon_ray.errors import DataError

Sampling = Literal["random", "fps"]


@dataclass(frozen=True)
class SurfacePoints:
    """Points drawn from a shape.

    Attributes:
        points: (N, 3) float64.
        normals: (N, 3) where known.
        colors: (N, 3) uint8 where known.
        part_labels: (N,) uint8 where known.
        valid: Number of the shape's own points; they come first, the others repeat them.
    """

    points: np.ndarray
    normals: np.ndarray | None
    colors: np.ndarray | None
    part_labels: np.ndarray | None
    valid: int


def sample_points(
    shape: Shape,
    num_points: int,
    generator: np.random.Generator,
    name: str,
    *,
    sampling: Sampling = "random",
) -> SurfacePoints:
    """Draw points: uniformly over the area of a mesh, without replacement from a cloud.

    A cloud of exactly N points keeps its order.

    Args:
        shape: Mesh or cloud that passed :func:`recon_ray.data.readers.meshes.check_shape`.
        num_points: N, how many.
        generator: Source of the random numbers.
        name: Name of the shape in messages.
        sampling: How a larger cloud is thinned: at random, or to the farthest points from a random
            first one, in the order in which they are found (the reference's ModelNet cache).

    Raises:
        DataError: If a cloud has fewer points.
    """
    if shape.is_mesh:
        return _from_mesh(shape, num_points, generator)
    count = len(shape.vertices)
    if count < num_points:
        raise DataError(
            f"{name}: holds {count} points, fewer than prepare.num_points = {num_points}; "
            "lower that option or give denser clouds"
        )
    if count == num_points:
        return _chosen(shape, np.arange(count))
    if sampling == "fps":
        return _chosen(shape, _farthest(shape.vertices, num_points, generator))
    return _chosen(shape, generator.permutation(count)[:num_points])


def pad_points(shape: Shape, num_points: int, name: str) -> SurfacePoints:
    """Keep all points of a cloud and repeat them, in their order, until there are ``num_points``.

    Raises:
        DataError: If it is a mesh, or has more points.
    """
    count = len(shape.vertices)
    if shape.is_mesh:
        raise DataError(f"{name}: is a mesh; this source keeps the points of clouds")
    if count > num_points:
        raise DataError(
            f"{name}: holds {count} points, more than prepare.num_points = {num_points}; raise it"
        )
    return replace(_chosen(shape, np.arange(num_points) % count), valid=count)


def cloud_of_file(path: Path, *, up_axis: str, num_points: int, seed: int) -> np.ndarray:
    """Read a file as a cloud (N, 3), y up; a mesh is sampled, a cloud keeps all its points.

    The sampling depends on the seed and the name of the file.

    Raises:
        DataError: If it cannot be read; the message names it.
    """
    shape = to_y_up(load_shape(path), up_axis)
    if not shape.is_mesh:
        return shape.vertices
    return sample_points(shape, num_points, sample_generator(seed, path.name), str(path)).points


def _chosen(shape: Shape, chosen: np.ndarray) -> SurfacePoints:
    normals, colors, parts = (
        None if column is None else column[chosen]
        for column in (shape.normals, shape.colors, shape.part_labels)
    )
    return SurfacePoints(shape.vertices[chosen], normals, colors, parts, len(chosen))


def _farthest(points: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    import torch  # takes seconds, and only this needs it

    from recon_ray.points import ops

    cloud = torch.from_numpy(points.astype(np.float32))[None]
    start = torch.tensor([int(generator.integers(len(points)))])
    indices, _ = ops.furthest_point_sample(cloud, count, start=start)
    return indices[0].numpy()


def _from_mesh(shape: Shape, num_points: int, generator: np.random.Generator) -> SurfacePoints:
    cross = face_cross(shape)
    norm = np.linalg.norm(cross, axis=1)
    cumulative = np.cumsum(norm)
    draws = generator.random((3, num_points))
    face = np.searchsorted(cumulative, draws[0] * cumulative[-1], side="right")
    # Rounding must not pick past the last real face.
    face = np.minimum(face, np.flatnonzero(norm)[-1])
    root = np.sqrt(draws[1])
    weights = np.stack([1 - root, root * (1 - draws[2]), root * draws[2]], axis=1)  # (N, 3)
    corners = shape.vertices[shape.faces[face]]  # type: ignore[index]  # (N, 3 corners, 3)
    colors = None
    if shape.colors is not None:
        mixed = np.einsum("nc,ncd->nd", weights, shape.colors[face].astype(np.float64))
        colors = np.rint(mixed).astype(np.uint8)
    points = np.einsum("nc,ncd->nd", weights, corners)
    return SurfacePoints(points, cross[face] / norm[face, None], colors, None, num_points)
