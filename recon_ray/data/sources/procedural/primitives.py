"""Triangle meshes of boxes, turned profiles, prisms and tubes, and their assembly.

Every primitive is a pair of vertices (n, 3) float64 and faces (f, 3) int64; y is up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recon_ray.data.readers.meshes import Shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Mesh = tuple[np.ndarray, np.ndarray]
Color = tuple[int, int, int]
SEGMENTS = 24  # around a turned profile: round enough at 96 pixels, and still quick to render

_BOX_CORNERS = np.array([[x, y, z] for y in (-0.5, 0.5) for x in (-0.5, 0.5) for z in (-0.5, 0.5)])
_BOX_FACES = np.array(
    [
        *([0, 2, 3], [0, 3, 1], [4, 5, 7], [4, 7, 6], [0, 1, 5], [0, 5, 4]),
        *([2, 6, 7], [2, 7, 3], [0, 4, 6], [0, 6, 2], [1, 3, 7], [1, 7, 5]),
    ]
)


def join(parts: Iterable[tuple[Mesh, Color]]) -> Shape:
    """Join parts, each with one sRGB color (0 to 255), to one colored mesh."""
    meshes, palette = zip(*parts, strict=True)
    vertices, faces = zip(*meshes, strict=True)
    offsets = np.cumsum([0, *map(len, vertices[:-1])])
    corners = np.array(palette, np.uint8)[:, None].repeat(3, axis=1)
    return Shape(
        np.concatenate(vertices),
        np.concatenate([part + offset for part, offset in zip(faces, offsets, strict=True)]),
        corners.repeat([len(part) for part in faces], axis=0),
    )


def box(center: Sequence[float], size: Sequence[float], taper: float = 1.0) -> Mesh:
    """Return a box; its upper face is ``taper`` times as wide and deep as the lower one."""
    corners = _BOX_CORNERS * np.asarray(size, np.float64)
    corners[4:, [0, 2]] *= taper
    return corners + np.asarray(center, np.float64), _BOX_FACES


def lathe(profile: Sequence[Sequence[float]] | np.ndarray, segments: int = SEGMENTS) -> Mesh:
    """Turn a profile about the y axis.

    Args:
        profile: (m, 2) radius and height, in order along the surface; radius 0 closes an end.
        segments: Sides of the turned body.
    """
    radius, height = np.asarray(profile, np.float64).T
    angle = np.arange(segments) * (2 * np.pi / segments)
    x = radius[:, None] * np.sin(angle)
    z = radius[:, None] * np.cos(angle)
    y = np.broadcast_to(height[:, None], x.shape)
    vertices = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    return vertices, _grid_faces(len(radius), segments)


def cylinder(base: Sequence[float], radius: float, height: float, top: float | None = None) -> Mesh:
    """Return a closed cylinder on ``base``, or a cone's stump if the ``top`` radius differs."""
    upper = radius if top is None else top
    vertices, faces = lathe([(0, 0), (radius, 0), (upper, height), (0, height)])
    return vertices + np.asarray(base, np.float64), faces


def ellipsoid(center: Sequence[float], radii: Sequence[float]) -> Mesh:
    """Return an ellipsoid."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 11)
    vertices, faces = lathe(np.stack([np.cos(angle), np.sin(angle)], axis=1))
    return vertices * np.asarray(radii, np.float64) + np.asarray(center, np.float64), faces


def prism(outline: Sequence[Sequence[float]], depth: float) -> Mesh:
    """Extrude a convex (m, 2) outline of x and y along z, centred on z = 0."""
    flat = np.asarray(outline, np.float64)
    count = len(flat)
    front = np.column_stack([flat, np.full(count, depth / 2)])
    back = np.column_stack([flat, np.full(count, -depth / 2)])
    fan = np.array([[0, i, i + 1] for i in range(1, count - 1)])
    after = (np.arange(count) + 1) % count
    first = np.stack([np.arange(count), np.arange(count) + count, after], axis=1)
    second = np.stack([after, np.arange(count) + count, after + count], axis=1)
    faces = np.concatenate([fan, fan[:, ::-1] + count, first, second])
    return np.concatenate([front, back]), faces


def tube(path: np.ndarray, radius: float, segments: int = 10) -> Mesh:
    """Return a round tube along an (m, 3) path that lies in a plane of constant x or z."""
    along = np.gradient(np.asarray(path, np.float64), axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    plane = np.array([0.0, 0.0, 1.0]) if np.ptp(path[:, 2]) < 1e-9 else np.array([1.0, 0.0, 0.0])
    side = np.cross(along, plane)
    angle = np.arange(segments) * (2 * np.pi / segments)
    ring = side[:, None] * np.cos(angle)[:, None] + plane * np.sin(angle)[:, None]
    vertices = (path[:, None] + radius * ring).reshape(-1, 3)
    return vertices, _grid_faces(len(path), segments)


def move(mesh: Mesh, offset: Sequence[float]) -> Mesh:
    """Shift a mesh."""
    return mesh[0] + np.asarray(offset, np.float64), mesh[1]


def turn(mesh: Mesh, axis: str, degrees: float) -> Mesh:
    """Rotate a mesh about the x, y or z axis through the origin (right-handed)."""
    angle = np.deg2rad(degrees)
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    vertices = mesh[0].copy()
    a, b = mesh[0][:, first], mesh[0][:, second]
    vertices[:, first] = np.cos(angle) * a - np.sin(angle) * b
    vertices[:, second] = np.sin(angle) * a + np.cos(angle) * b
    return vertices, mesh[1]


def _grid_faces(rows: int, columns: int) -> np.ndarray:
    """Triangles of a grid of vertices that closes upon itself along its columns."""
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns), indexing="ij")
    following = (column + 1) % columns
    a, b = row * columns + column, row * columns + following
    lower = np.stack([a, b, b + columns], axis=-1)
    upper = np.stack([a, b + columns, a + columns], axis=-1)
    return np.concatenate([lower.reshape(-1, 3), upper.reshape(-1, 3)])
