"""Rendered and loaded pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from recon_ray.data.prepare.render import (
    camera_ring,
    encode_image,
    load_image,
    render_views,
    renderer,
)
from recon_ray.data.prepare.sampling import sample_points
from recon_ray.data.readers.meshes import Shape
from recon_ray.data.sources.procedural.primitives import box, ellipsoid, join
from recon_ray.errors import DataError

BACKENDS = [
    pytest.param(
        "embree",
        marks=pytest.mark.skipif(renderer() != "embree", reason="embreex is not installed"),
    ),
    "splat",
]


def _inked(picture):
    return (picture < 255).any(axis=-1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sphere_is_a_disc_that_fills_the_picture(backend):
    (picture,) = render_views(Shape(*ellipsoid((5, 5, 5), (2, 2, 2))), 1, 64, backend=backend)
    inked = _inked(picture)
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    assert picture.shape == (64, 64, 3)
    # The bounding sphere of a box around a sphere is the sphere; a margin of 2 % and a pixel.
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=3)
    assert inked.mean() == pytest.approx(np.pi / 4, abs=0.12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_y_is_up_and_the_cameras_go_around(backend):
    red = box((0, 0.5, 0), (0.3, 1, 0.3)), (255, 0, 0)
    blue = box((0, -0.5, 0), (0.3, 1, 0.3)), (0, 0, 255)
    green = box((0, -0.5, 0.5), (0.3, 0.3, 0.7)), (0, 255, 0)  # points to the front
    post = join([red, blue, green])
    rows, columns = [], []
    for view in render_views(post, 4, 64, backend=backend):
        strongest = np.where(_inked(view), view.argmax(axis=-1), -1)
        rows.append([np.argwhere(strongest == channel)[:, 0].mean() for channel in (0, 2)])
        columns.append(np.argwhere(strongest == 1)[:, 1].mean() if (strongest == 1).any() else 32)
    assert all(red < blue for red, blue in rows)  # row 0 is at the top
    # From azimuth 30 the front points a little to the left, from 120 far to the left, and so on.
    assert columns[1] < columns[0] < 32 < columns[3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_do_not_depend_on_units_or_place(backend):
    vertices, faces = box((0, 0, 0), (1, 2, 3))
    first = render_views(Shape(vertices, faces), 2, 48, backend=backend)
    second = render_views(Shape(vertices * 1024 + 4096, faces), 2, 48, backend=backend)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)  # powers of two: exact in floating point


def test_vertices_without_faces_do_not_shrink_the_picture():
    vertices, faces = box((0, 0, 0), (1, 1, 1))
    stray = np.concatenate([vertices, [[100.0, 0, 0]]])
    np.testing.assert_array_equal(
        render_views(Shape(vertices, faces), 1, 32)[0], render_views(Shape(stray, faces), 1, 32)[0]
    )


def test_clouds_are_shaded_by_depth():
    points = sample_points(
        Shape(*ellipsoid((0, 0, 0), (1, 1, 1))), 2000, np.random.default_rng(0), ""
    )
    (picture,) = render_views(Shape(points.points), 1, 64)
    shades = picture[_inked(picture)]
    assert _inked(picture).mean() > 0.4
    assert shades.max() - shades.min() > 30


@pytest.mark.parametrize("backend", BACKENDS)
def test_depth_maps_are_bright_where_the_surface_is_near(backend):
    shape = Shape(*ellipsoid((0, 0, 0), (1, 1, 1)))
    (picture,) = render_views(shape, 1, 64, style="depth", backend=backend)
    assert (picture[..., 0] == picture[..., 1]).all()
    assert (picture[0, 0] == 0).all()  # nothing is there
    # A box around a sphere reaches a little beyond it; the nearest point is 1 from the centre.
    assert 235 <= picture[32, 32, 0] <= 255
    row = picture[32, 32:, 0].astype(int)
    seen = row[row > 0]
    assert seen[-1] < 210  # the rim lies a third of the radius before the centre: 184, and a disc
    assert (np.diff(seen) <= 1).mean() > 0.9  # the discs of a splatted mesh leave a gap or two


def test_cloud_and_mesh_have_the_same_depths():
    shape = Shape(*box((0, 0, 0), (1, 1, 1)))
    drawn = sample_points(shape, 20_000, np.random.default_rng(0), "").points
    mesh, cloud = (render_views(s, 1, 48, style="depth")[0] for s in (shape, Shape(drawn)))
    both = (mesh > 0) & (cloud > 0)
    assert both.mean() > 0.2
    # Of the discs, 3 pixels wide, the nearest wins: on slanted faces a pixel is 9 levels.
    assert np.abs(mesh.astype(int) - cloud)[both].mean() < 12


def test_a_mesh_can_be_splatted():
    shape = Shape(*box((0, 0, 0), (1, 1, 1)))
    splat = render_views(shape, 1, 48, style="splat")[0]
    np.testing.assert_array_equal(splat, render_views(shape, 1, 48, backend="splat")[0])


def test_the_ring_is_the_documented_one():
    backs = np.stack([pose[2] for pose in camera_ring(4)])
    np.testing.assert_allclose(backs[:, 1], np.sin(np.deg2rad(20)))
    azimuths = np.rad2deg(np.arctan2(backs[:, 0], backs[:, 2])) % 360
    np.testing.assert_allclose(azimuths, [30, 120, 210, 300])
    for pose in camera_ring(4):
        np.testing.assert_allclose(pose @ pose.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(pose) == pytest.approx(1)


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8\xff")])
def test_encoding_is_repeatable(kind, magic):
    picture = render_views(Shape(*box((0, 0, 0), (1, 1, 1))), 1, 32)[0]
    encoded = encode_image(picture, kind)
    assert encoded == encode_image(picture.copy(), kind)
    assert encoded.startswith(magic)


def test_transparent_pictures_lie_on_white_and_keep_proportions(tmp_path):
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (10, 5, 30, 15))
    image.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png", 40)
    assert loaded.shape == (40, 40, 3)
    assert loaded[0, 0].tolist() == [255, 255, 255]
    assert loaded[20, 20].tolist() == [255, 0, 0]
    assert loaded[16, 2].tolist() == [255, 255, 255]


def test_stretched_pictures_have_no_transparency_and_no_proportions(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 4), dtype=np.uint8)
    pixels[..., 3] = pixels[..., 3] // 128 * 255  # half of them are transparent
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    expected = Image.fromarray(pixels[..., :3].copy(), "RGB").resize((50, 50), Image.BICUBIC)
    loaded = load_image(tmp_path / "a.png", 50, fit="stretch")
    np.testing.assert_array_equal(loaded, np.asarray(expected))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([9, 9, 9, 10, 20, 30])
    palette.save(tmp_path / "p.png", transparency=1)
    assert load_image(tmp_path / "p.png", 4, fit="stretch")[0, 0].tolist() == [10, 20, 30]
    assert load_image(tmp_path / "p.png", 4)[0, 0].tolist() == [255, 255, 255]


def test_pictures_that_do_not_decode_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(DataError, match=r"a\.png: the image does not decode"):
        load_image(tmp_path / "a.png", 8)
    with pytest.raises(DataError, match=r"b\.png: image not found"):
        load_image(tmp_path / "b.png", 8)
