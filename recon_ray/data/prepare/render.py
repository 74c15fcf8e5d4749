"""Pictures of shapes from a fixed ring of cameras, on the CPU and without a display.

The cameras stand on a ring around the centre of the shape's bounding box: view i of V looks from
azimuth 30 + 360 i / V degrees (0 is +z, 90 is +x), 20 degrees above the horizon, with a field of
view of 40 degrees, from where the bounding sphere just fits. y is up. All views of a shape have one
scale, and shapes of any units fill the picture alike.

There are three styles. ``shaded``: meshes are ray cast with Embree and lit by one light beside the
camera, on white. ``splat``: clouds, and meshes where Embree is not installed, are drawn as discs of
which the nearest wins, on white. ``depth``: gray by distance, white at the near end of the bounding
sphere, dark at its far end, on black. ``auto`` shades meshes and splats clouds.
"""

from __future__ import annotations

import functools
import io
import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps

from recon_ray.data.prepare.sampling import sample_points
from recon_ray.data.readers.meshes import GREY, Shape
from recon_ray.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from embreex.rtcore_scene import EmbreeScene

FIELD_OF_VIEW = 40.0  # degrees
ELEVATION = 20.0  # degrees
FIRST_AZIMUTH = 30.0  # degrees: the first view shows front and side
AMBIENT = 0.45
LIGHT = np.array([-0.35, 0.55, 0.76])  # in camera axes (right, up, towards the viewer)
POINTS_PER_PIXEL = 2.0  # of a splatted mesh, over the whole picture
JPEG_QUALITY = 90
FARTHEST = 40  # gray of the far end of the bounding sphere in a depth map; the background is 0
Style = Literal["auto", "shaded", "splat", "depth"]
Fit = Literal["pad", "stretch"]


def render_views(
    shape: Shape, num_views: int, size: int, *, style: Style = "auto", backend: str = "auto"
) -> list[np.ndarray]:
    """Render a shape from the camera ring.

    Args:
        shape: Mesh or cloud with y up, in any units.
        num_views: V, number of pictures.
        size: Side of the square pictures in pixels.
        style: ``shaded`` (of meshes), ``splat``, ``depth``, or ``auto``.
        backend: What meshes are drawn with unless they are splatted: ``embree``, ``splat``, or
            ``auto`` for the first where it is installed.

    Returns:
        V arrays (size, size, 3) uint8, sRGB.
    """
    used = np.unique(shape.faces) if shape.faces is not None else slice(None)
    corners = shape.vertices[used]
    center = (corners.min(axis=0) + corners.max(axis=0)) / 2
    radius = np.sqrt(((corners - center) ** 2).sum(axis=1).max())
    vertices = (shape.vertices - center) / radius
    shape = Shape(vertices, shape.faces, shape.colors, shape.normals)
    poses, is_depth = camera_ring(num_views), style == "depth"
    cast = (renderer() if backend == "auto" else backend) == "embree" and style != "splat"
    if shape.is_mesh and cast:
        scene = _embree_scene(shape)
        return [_cast(shape, scene, vertices[used], pose, size, is_depth) for pose in poses]
    cloud, lit = _as_cloud(shape, size)
    return [_splat(cloud, lit, pose, size, is_depth) for pose in poses]


@functools.cache
def renderer() -> str:
    """Return the renderer of meshes here: ``embree``, or ``splat`` where it is not installed."""
    try:
        import embreex.rtcore_scene  # noqa: F401
    except ImportError:
        return "splat"
    return "embree"


@functools.lru_cache(maxsize=8)
def camera_ring(num_views: int) -> tuple[np.ndarray, ...]:
    """Return the (3, 3) camera axes of each view, as rows right, up and towards the viewer."""
    poses = []
    elevation = np.deg2rad(ELEVATION)
    for view in range(num_views):
        azimuth = np.deg2rad(FIRST_AZIMUTH + 360.0 * view / num_views)
        level = np.cos(elevation)
        back = np.array([np.sin(azimuth) * level, np.sin(elevation), np.cos(azimuth) * level])
        right = np.array([np.cos(azimuth), 0.0, -np.sin(azimuth)])
        poses.append(np.stack([right, np.cross(back, right), back]))
    return tuple(poses)


def _distance() -> float:
    """Return the camera's distance from the centre of a unit sphere that fits the picture."""
    return float(1.02 / np.sin(np.deg2rad(FIELD_OF_VIEW / 2)))


@functools.lru_cache(maxsize=8)
def _rays(size: int) -> np.ndarray:
    """Return unit directions (size, size, 3) of the pixels in camera axes, the top row first."""
    half = np.tan(np.deg2rad(FIELD_OF_VIEW / 2))
    grid = ((np.arange(size) + 0.5) / size * 2 - 1) * half
    x, y = np.meshgrid(grid, -grid)
    rays = np.stack([x, y, -np.ones_like(x)], axis=-1)
    return (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).astype(np.float32)


def _project(points: np.ndarray, pose: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 2) pixels (column, row) and (n,) depths of points in the unit sphere."""
    seen = points @ pose.T  # (n, 3) right, up, back
    depth = _distance() - seen[:, 2]
    scale = size / 2 / np.tan(np.deg2rad(FIELD_OF_VIEW / 2)) / depth
    return np.stack([size / 2 + seen[:, 0] * scale, size / 2 - seen[:, 1] * scale], axis=1), depth


# Ray casting


def _embree_scene(shape: Shape) -> EmbreeScene:
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    scene, faces = EmbreeScene(), np.ascontiguousarray(shape.faces, np.int32)
    TriangleMesh(scene, np.ascontiguousarray(shape.vertices, np.float32), faces)
    return scene


def _cast(
    shape: Shape,
    scene: EmbreeScene,
    corners: np.ndarray,
    pose: np.ndarray,
    size: int,
    is_depth: bool,
) -> np.ndarray:
    pixels, _ = _project(corners, pose, size)
    left, top = np.floor(pixels.min(axis=0)).astype(int).clip(0, size - 1)
    right, bottom = np.ceil(pixels.max(axis=0)).astype(int).clip(1, size)
    seen = _rays(size)[top:bottom, left:right].reshape(-1, 3)  # in camera axes
    rays = np.ascontiguousarray(seen @ pose.astype(np.float32))
    origins = np.broadcast_to((pose[2] * _distance()).astype(np.float32), rays.shape)
    hits = scene.run(np.ascontiguousarray(origins), rays, query="INTERSECT", output=1)
    struck = np.flatnonzero(hits["primID"] >= 0)
    picture = _background(size, is_depth)
    window = picture[top:bottom, left:right].reshape(-1, 3)
    if is_depth:
        window[struck] = _gray(hits["tfar"][struck] * -seen[struck, 2])
    else:
        colors = _hit_colors(shape, hits["primID"][struck], hits["u"][struck], hits["v"][struck])
        normals = hits["Ng"][struck].astype(np.float64)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
        window[struck] = _shade(colors, normals, pose)
    picture[top:bottom, left:right] = window.reshape(bottom - top, right - left, 3)
    return picture


def _background(size: int, is_depth: bool) -> np.ndarray:
    return np.full((size, size, 3), 0 if is_depth else 255, np.uint8)


def _gray(depth: np.ndarray) -> np.ndarray:
    """Return (n, 1) levels of a depth map for (n,) depths along the viewing axis."""
    nearness = ((_distance() + 1 - depth) / 2).clip(0, 1)
    return np.rint(FARTHEST + (255 - FARTHEST) * nearness).astype(np.uint8)[:, None]


def _hit_colors(shape: Shape, face: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    if shape.colors is None:
        return np.full((len(face), 3), float(GREY))
    weights = np.stack([1 - u - v, u, v], axis=1).astype(np.float64)
    return np.einsum("nc,ncd->nd", weights, shape.colors[face].astype(np.float64))


def _shade(colors: np.ndarray, normals: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Light (n, 3) colors: Lambert, equal on both sides, because many meshes are one-sided."""
    light = LIGHT / np.linalg.norm(LIGHT) @ pose
    strength = AMBIENT + (1 - AMBIENT) * np.abs(normals @ light)
    return np.clip(np.rint(colors * strength[:, None]), 0, 255).astype(np.uint8)


# Splatting


def _as_cloud(shape: Shape, size: int) -> tuple[Shape, bool]:
    """Return a cloud to splat, and whether its normals can be lit."""
    if not shape.is_mesh:
        return shape, shape.normals is not None
    count = int(POINTS_PER_PIXEL * size * size)
    drawn = sample_points(shape, count, np.random.default_rng(0), "the mesh")
    return Shape(drawn.points, None, drawn.colors, drawn.normals), True


def _splat(cloud: Shape, lit: bool, pose: np.ndarray, size: int, is_depth: bool) -> np.ndarray:
    pixels, depth = _project(cloud.vertices, pose, size)
    colors = np.full((len(depth), 3), float(GREY)) if cloud.colors is None else cloud.colors
    if is_depth:
        shaded = _gray(depth).repeat(3, axis=1)
    elif lit and cloud.normals is not None:
        shaded = _shade(colors, cloud.normals, pose)
    else:  # the near side is lighter, which shows the form without normals
        nearness = (_distance() + 1 - depth) / 2
        strength = AMBIENT + (1 - AMBIENT) * nearness.clip(0, 1)
        shaded = np.clip(np.rint(colors * strength[:, None]), 0, 255).astype(np.uint8)
    order = np.argsort(-depth, kind="stable")  # far to near: the last to be written stays
    base, shaded = np.floor(pixels[order]).astype(int), shaded[order]
    picture = _background(size, is_depth)
    # Where the discs leave a gap the far side shows, which is worse in a depth map.
    offsets = _disc(_splat_radius(len(depth), size) * (1.5 if is_depth else 1.0))
    target = base[:, None, :] + offsets  # (n, offsets, 2)
    inside = ((target >= 0) & (target < size)).all(axis=-1)
    owner = np.repeat(np.arange(len(base))[:, None], len(offsets), axis=1)[inside]
    target = target[inside]
    picture[target[:, 1], target[:, 0]] = shaded[owner]
    return picture


def _splat_radius(count: int, size: int) -> float:
    """Return the radius in pixels at which the discs cover about a third of the picture once."""
    return float(np.clip(np.sqrt(size * size / (3.0 * count)), 1.0, size / 24))


def _disc(radius: float) -> np.ndarray:
    reach = int(np.ceil(radius))
    grid = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1).T
    return grid[(grid**2).sum(axis=1) <= radius**2]


# Encoded pictures


def encode_image(picture: np.ndarray, image_format: str = "png") -> bytes:
    """Encode a (H, W, 3) uint8 picture as PNG or JPEG; equal pictures give equal bytes."""
    buffer = io.BytesIO()
    options = {"compress_level": 3} if image_format == "png" else {"quality": JPEG_QUALITY}
    Image.fromarray(picture).save(buffer, image_format, **options)
    return buffer.getvalue()


def load_image(path: Path, size: int, *, fit: Fit = "pad") -> np.ndarray:
    """Read a picture and resize it to a square.

    Args:
        path: A file of any type that Pillow reads.
        size: Side of the result in pixels.
        fit: ``pad`` lays it on white where it is transparent and pads it with white; ``stretch``
            ignores its transparency and its proportions, as the published reader does.

    Raises:
        DataError: If the file is missing or does not decode.
    """
    if not path.is_file():
        raise DataError(f"{path}: image not found")
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            read = ImageOps.exif_transpose(image).convert("RGB" if fit == "stretch" else "RGBA")
    except Exception as error:  # Pillow's decoders fail on damaged bytes in many ways
        raise DataError(f"{path}: the image does not decode ({type(error).__name__})") from error
    if fit == "stretch":
        return np.asarray(read.resize((size, size), Image.Resampling.BICUBIC))
    side = max(read.size)
    canvas = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    canvas.alpha_composite(read, ((side - read.width) // 2, (side - read.height) // 2))
    return np.asarray(canvas.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
