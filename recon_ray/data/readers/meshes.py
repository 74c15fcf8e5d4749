"""Readers of meshes and point clouds.

OFF (which the published sets write in a broken way), PCD and arrays have own readers; PLY, OBJ, STL
and glTF go through trimesh. Any fault of a file ends as one :class:`DataError` naming it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recon_ray.data.readers import pcd
from recon_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    import trimesh
    from PIL import Image

TRIMESH_SUFFIXES = (".ply", ".obj", ".stl", ".glb", ".gltf")
POINT_KEYS = ("points", "xyz", "pos", "pc", "vertices", "arr_0")
GREY = 200  # color of a shape that has none: visible on white, as shape renders usually are
OFF_HEADER = re.compile(r"^(ST)?(C)?(N)?(4)?(N)?OFF", re.IGNORECASE)


@dataclass(frozen=True)
class Shape:
    """A triangle mesh, or a point cloud if it has no faces.

    Attributes:
        vertices: (n, 3) float64 in the file's units and axes.
        faces: (f, 3) int64 indices into the vertices, None for a cloud.
        colors: sRGB uint8; (f, 3, 3) at each corner of each face of a mesh, (n, 3) for a cloud.
        normals: (n, 3) unit normals of a cloud; a mesh has its faces'.
        part_labels: (n,) uint8 part of every point of a cloud.
    """

    vertices: np.ndarray
    faces: np.ndarray | None = None
    colors: np.ndarray | None = None
    normals: np.ndarray | None = None
    part_labels: np.ndarray | None = None

    @property
    def is_mesh(self) -> bool:
        """Return whether there are faces to draw points from and to render."""
        return self.faces is not None


def load_shape(path: Path) -> Shape:
    """Read a mesh or a cloud from a file with one of :data:`SHAPE_SUFFIXES` and check it.

    Raises:
        DataError: If the file is missing, empty, damaged or of another type, has no faces or no
            area, or holds coordinates that are not finite; the message names the file.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        known = " ".join(sorted(READERS))
        raise DataError(f"{path}: cannot read files of this type; use one of {known}")
    if not path.is_file():
        raise DataError(f"{path}: file not found")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    try:
        shape = reader(path)
    except DataError:
        raise
    except Exception as error:  # parsers fail on damaged bytes in many ways
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise DataError(f"{path}: cannot be read ({reason})") from error
    check_shape(shape, str(path))
    return shape


def check_shape(shape: Shape, name: str) -> None:
    """Check that a sample can be made from a shape; its name for messages is usually the file.

    Raises:
        DataError: On no points, one point, points that are not finite or all alike, a face with a
            missing vertex, or a mesh without area.
    """
    count = len(shape.vertices)
    if count == 0:
        raise DataError(f"{name}: holds no points")
    if count == 1:
        raise DataError(f"{name}: holds one point only")
    bad = int((~np.isfinite(shape.vertices).all(axis=1)).sum())
    if bad:
        raise DataError(f"{name}: {bad} of {count} points are not finite (NaN or infinite)")
    extent = np.ptp(shape.vertices, axis=0).max()
    if extent == 0:
        raise DataError(f"{name}: all {count} points are the same")
    if shape.faces is None:
        return
    if len(shape.faces) == 0:
        raise DataError(f"{name}: the mesh has no faces")
    if shape.faces.min() < 0 or shape.faces.max() >= count:
        raise DataError(f"{name}: a face names vertex {shape.faces.max()}, but there are {count}")
    if face_areas(shape).sum() <= 1e-12 * extent**2:
        raise DataError(f"{name}: the mesh has no area")


def to_y_up(shape: Shape, up_axis: str) -> Shape:
    """Turn a shape so that its up axis (x, y or z) becomes y, by a proper rotation."""
    if up_axis == "y":
        return shape
    normals = None if shape.normals is None else turn_y_up(shape.normals, up_axis)
    return replace(shape, vertices=turn_y_up(shape.vertices, up_axis), normals=normals)


def turn_y_up(vectors: np.ndarray, up_axis: str) -> np.ndarray:
    """Turn (n, 3) vectors: z up becomes (x, z, -y), x up becomes (-y, x, z)."""
    x, y, z = vectors.T
    if up_axis == "z":
        return np.stack([x, z, -y], axis=1)
    if up_axis == "x":
        return np.stack([-y, x, z], axis=1)
    return vectors


def sample_generator(seed: int, object_id: str) -> np.random.Generator:
    """Return the generator of one sample, a function of the seed and its id alone."""
    digest = hashlib.sha256(f"{seed}\0{object_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def face_areas(shape: Shape) -> np.ndarray:
    """Return the (f,) areas of a mesh's faces."""
    return 0.5 * np.linalg.norm(face_cross(shape), axis=1)


def face_cross(shape: Shape) -> np.ndarray:
    """Return the (f, 3) normals of a mesh's faces, twice as long as their areas."""
    a, b, c = (shape.vertices[shape.faces[:, i]] for i in range(3))  # type: ignore[index]
    return np.cross(b - a, c - a)


# Readers


def _read_off(path: Path) -> Shape:
    """Read OFF, also with its header joined to the counts (``OFF490 518 0``), COFF and CNOFF."""
    lines = [line.split("#")[0].strip() for line in path.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    match = OFF_HEADER.match(lines[0]) if lines else None
    if match is None:
        raise DataError(f"{path}: not an OFF file: its first line does not begin with OFF")
    rest = lines[0][match.end() :].split()
    lines = lines[1:]
    if not rest:
        rest, lines = lines[0].split(), lines[1:]
    num_vertices, num_faces = int(rest[0]), int(rest[1])
    if len(lines) < num_vertices + num_faces:
        raise DataError(
            f"{path}: the header announces {num_vertices} vertices and {num_faces} faces, "
            f"but only {len(lines)} lines follow"
        )
    table = _numbers(lines[:num_vertices]).reshape(num_vertices, -1)
    first_color = 6 if match.group(3) else 3
    colors = _as_colors(table[:, first_color : first_color + 3]) if match.group(2) else None
    if num_faces == 0:
        # Clouds in OFF files exist, but cannot be distinguished from a mesh that lost its faces.
        raise DataError(f"{path}: the mesh has no faces")
    faces, face_colors = _off_faces(lines[num_vertices : num_vertices + num_faces])
    if colors is not None:
        face_colors = colors[faces]
    return Shape(table[:, :3], faces, face_colors)


def _off_faces(lines: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    rows = [line.split() for line in lines]
    sizes = np.array([int(row[0]) for row in rows])
    triangles, colors = [], []
    for size in np.unique(sizes[sizes >= 3]):
        chosen = [row for row, own in zip(rows, sizes, strict=True) if own == size]
        corners = np.array([row[1 : 1 + size] for row in chosen]).astype(np.int64)
        triangles.append(_fan(corners))
        if all(len(row) >= size + 4 for row in chosen):
            values = np.array([row[size + 1 : size + 4] for row in chosen]).astype(np.float64)
            colors.append(np.repeat(_as_colors(values), size - 2, axis=0))
    if not triangles:
        return np.empty((0, 3), np.int64), None
    faces = np.concatenate(triangles)
    if len(colors) < len(triangles):
        return faces, None
    return faces, np.repeat(np.concatenate(colors)[:, None], 3, axis=1)


def _fan(corners: np.ndarray) -> np.ndarray:
    """Cut (p, s) polygons of s corners into (p * (s - 2), 3) triangles around the first corner."""
    size = corners.shape[1]
    parts = [corners[:, [0, i, i + 1]] for i in range(1, size - 1)]
    return np.stack(parts, axis=1).reshape(-1, 3)


def _read_pcd(path: Path) -> Shape:
    columns = pcd.read_pcd(path)
    missing = [name for name in "xyz" if name not in columns]
    if missing:
        raise DataError(f"{path}: the PCD file has no field {', '.join(missing)}")
    vertices = np.stack([columns[name] for name in "xyz"], axis=1).astype(np.float64)
    normals = [columns.get(f"normal_{name}") for name in "xyz"]
    known = None if any(n is None for n in normals) else np.stack(normals, axis=1)  # type: ignore[arg-type]
    return Shape(vertices, None, pcd.packed_colors(columns), known)


def _read_numpy(path: Path) -> Shape:
    try:
        archive = np.load(path, allow_pickle=False)
    except ValueError as error:  # numpy's own advice is to load it unsafely
        raise DataError(
            f"{path}: cannot be read as an array of numbers that NumPy wrote"
        ) from error
    if isinstance(archive, np.ndarray):
        return _cloud_from_table(archive, path)
    with archive:
        arrays = {key: archive[key] for key in archive.files}
    if "faces" in arrays and "vertices" in arrays:
        return _mesh_from_tables(arrays["vertices"], arrays["faces"], path)
    found = [key for key in POINT_KEYS if key in arrays] or list(arrays)
    if not found or (found[0] not in POINT_KEYS and len(found) > 1):
        raise DataError(
            f"{path}: has no array named {', '.join(POINT_KEYS)}, "
            f"only {', '.join(arrays) or 'none'}"
        )
    return _cloud_from_table(arrays[found[0]], path)


def _mesh_from_tables(vertices: np.ndarray, faces: np.ndarray, path: Path) -> Shape:
    if vertices.ndim != 2 or vertices.shape[1] < 3 or vertices.dtype.kind not in "fiu":
        found = f"{vertices.dtype} {vertices.shape}"
        raise DataError(f"{path}: expected vertices of shape (points, 3 or more), found {found}")
    if faces.ndim != 2 or faces.shape[1] not in (3, 4) or faces.dtype.kind not in "iu":
        found = f"{faces.dtype} {faces.shape}"
        raise DataError(f"{path}: expected faces as integers of shape (faces, 3 or 4), not {found}")
    return Shape(vertices[:, :3].astype(np.float64), _fan(faces.astype(np.int64)))


def _read_text(path: Path) -> Shape:
    """Read x y z [more] lines, split at blanks or , or ;. A lone count may come first."""
    lines = path.read_text(errors="replace").splitlines()
    lines = [re.split(r"#|//", line)[0].replace(",", " ").replace(";", " ") for line in lines]
    lines = [line for line in lines if line.strip()]
    if lines and len(lines[0].split()) == 1:
        lines = lines[1:]
    if not lines:
        raise DataError(f"{path}: holds no points")
    width = len(lines[0].split())
    values = _numbers(lines)
    if values.size != width * len(lines):
        raise DataError(f"{path}: its lines do not all have {width} numbers")
    return _cloud_from_table(values.reshape(len(lines), width), path)


def _cloud_from_table(table: np.ndarray, path: Path) -> Shape:
    if table.ndim != 2 or table.shape[1] < 3 or table.dtype.kind not in "fiu":
        found = f"{table.dtype} {tuple(table.shape)}"
        raise DataError(f"{path}: expected numbers of shape (points, 3 or more), found {found}")
    values = table.astype(np.float64)
    normals, colors = _extra_columns(values[:, 3:6])
    return Shape(values[:, :3], None, colors, normals)


def _extra_columns(extra: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return columns four to six as normals (unit length) or colors (0 to 255 or 0 to 1)."""
    if extra.shape[1] < 3 or len(extra) == 0 or not np.isfinite(extra).all():
        return None, None
    if np.abs(np.linalg.norm(extra, axis=1) - 1).max() < 0.05:
        return extra, None
    if extra.min() >= 0 and extra.max() <= 255:
        return None, _as_colors(extra)
    return None, None


def _as_colors(values: np.ndarray) -> np.ndarray:
    """Return (n, 3) uint8 colors from numbers in [0, 1] or in [0, 255]."""
    scale = 255.0 if values.size and values.max() <= 1.0 else 1.0
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)


def _numbers(lines: list[str]) -> np.ndarray:
    return np.array(" ".join(lines).split(), dtype=np.float64)


def _read_trimesh(path: Path) -> Shape:
    import trimesh  # half a second of imports that the other formats do not need

    loaded = trimesh.load(path, process=False)
    parts = [_trimesh_part(geometry, pose) for geometry, pose in _placed(loaded)]
    meshes = [part for part in parts if part is not None and part.is_mesh]
    # By content: trimesh names and orders parts by a hash that is another in every process, and the
    # order of the faces decides which points are drawn.
    chosen = sorted(meshes or [part for part in parts if part is not None], key=_digest)
    if not chosen:
        raise DataError(f"{path}: the mesh has no faces")
    return _merge(chosen)


def _placed(loaded: trimesh.Scene | trimesh.Trimesh) -> list[tuple[trimesh.Trimesh, np.ndarray]]:
    """List the geometries of a scene with their 4 x 4 poses."""
    if not hasattr(loaded, "graph"):
        return [(loaded, np.eye(4))]
    nodes = [loaded.graph[node] for node in loaded.graph.nodes_geometry]
    return [(loaded.geometry[name], np.asarray(pose, np.float64)) for pose, name in nodes]


def _digest(shape: Shape) -> bytes:
    arrays = (shape.vertices, shape.faces, shape.colors)
    content = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays if a is not None)
    return hashlib.sha256(content).digest()


def _trimesh_part(geometry: trimesh.Trimesh, pose: np.ndarray) -> Shape | None:
    if type(geometry).__name__ not in ("Trimesh", "PointCloud"):
        return None  # drawn paths have no surface
    vertices = np.asarray(geometry.vertices, np.float64) @ pose[:3, :3].T + pose[:3, 3]
    if type(geometry).__name__ == "PointCloud":
        colors = getattr(geometry, "colors", None)
        usable = colors is not None and len(colors) == len(vertices)
        known = np.asarray(colors)[:, :3].astype(np.uint8) if usable else None
        return Shape(vertices, None, known, _ply_normals(geometry, pose))
    faces = np.asarray(geometry.faces, np.int64)
    return Shape(vertices, faces, _corner_colors(geometry.visual, faces)) if len(faces) else None


def _ply_normals(geometry: trimesh.PointCloud, pose: np.ndarray) -> np.ndarray | None:
    """Return (n, 3) normals from the columns of a PLY file; trimesh keeps those of meshes only."""
    columns = geometry.metadata.get("_ply_raw", {}).get("vertex", {}).get("data", {})
    names = columns.dtype.names or () if isinstance(columns, np.ndarray) else tuple(columns)
    if not {"nx", "ny", "nz"} <= set(names):
        return None
    normals = np.stack([np.asarray(columns[name]).ravel() for name in ("nx", "ny", "nz")], axis=1)
    return normals.astype(np.float64) @ pose[:3, :3].T


def _corner_colors(visual: trimesh.visual.TextureVisuals, faces: np.ndarray) -> np.ndarray | None:
    """Return (f, 3, 3) sRGB colors at the corners from vertices, faces or the material."""
    kind = getattr(visual, "kind", None)
    if kind == "vertex":
        return np.asarray(visual.vertex_colors)[:, :3].astype(np.uint8)[faces]
    if kind == "face":
        return np.repeat(np.asarray(visual.face_colors)[:, None, :3].astype(np.uint8), 3, axis=1)
    material = getattr(visual, "material", None)
    if material is None:
        return None
    texture, uv = _texture(material), getattr(visual, "uv", None)
    base = _base_color(material)
    if texture is None or uv is None:
        return np.broadcast_to(base, (len(faces), 3, 3))
    texels = _texels(texture, np.asarray(uv, np.float64))[faces]
    return np.rint(texels * (base / 255.0)).astype(np.uint8)


def _texture(material: trimesh.visual.material.Material) -> Image.Image | None:
    return getattr(material, "baseColorTexture", None) or getattr(material, "image", None)


def _base_color(material: trimesh.visual.material.Material) -> np.ndarray:
    factor = getattr(material, "baseColorFactor", None)
    if factor is not None:
        # glTF gives linear light; pictures and textures are sRGB.
        linear = np.asarray(factor, np.float64)[:3] / 255.0
        curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        return np.rint(255 * curve).astype(np.uint8)
    if _texture(material) is not None:
        return np.full(3, 255, np.uint8)
    diffuse = getattr(material, "diffuse", None)
    return np.full(3, GREY, np.uint8) if diffuse is None else np.array(diffuse[:3], np.uint8)


def _texels(texture: Image.Image, uv: np.ndarray) -> np.ndarray:
    """Look up the nearest texel of each (n, 2) coordinate, repeating beyond [0, 1]."""
    pixels = np.asarray(texture.convert("RGB"))
    height, width = pixels.shape[:2]
    column = np.floor((uv[:, 0] % 1.0) * width).astype(np.int64).clip(0, width - 1)
    row = np.floor(((1.0 - uv[:, 1]) % 1.0) * height).astype(np.int64).clip(0, height - 1)
    return pixels[row, column]


def _merge(parts: list[Shape]) -> Shape:
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    faces = colors = normals = None
    if parts[0].is_mesh:
        faces = np.concatenate([p.faces + o for p, o in zip(parts, offsets, strict=True)])
    if any(part.colors is not None for part in parts):
        sizes = [(len(p.vertices), 3) if (f := p.faces) is None else (len(f), 3, 3) for p in parts]
        gray = [np.full(size, GREY, np.uint8) for size in sizes]
        own = [part.colors for part in parts]
        colors = np.concatenate([g if o is None else o for g, o in zip(gray, own, strict=True)])
    if all(part.normals is not None for part in parts):
        normals = np.concatenate([part.normals for part in parts])
    return Shape(np.concatenate([part.vertices for part in parts]), faces, colors, normals)


READERS: dict[str, Callable[[Path], Shape]] = {
    ".off": _read_off,
    ".pcd": _read_pcd,
    **dict.fromkeys((".npy", ".npz"), _read_numpy),
    **dict.fromkeys((".xyz", ".txt", ".pts"), _read_text),
    **dict.fromkeys(TRIMESH_SUFFIXES, _read_trimesh),
}
SHAPE_SUFFIXES = tuple(sorted(READERS))
