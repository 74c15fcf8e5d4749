from __future__ import annotations

import numpy as np
import pytest
from drawn_pixels import is_blue, is_orange, read

from recon_ray.figures import shapes
from recon_ray.figures.panels import (
    OVERLAP_COLOR,
    UNSEEN_COLOR,
    VALUE_COLORS,
    ValueScale,
    project,
    rgb,
)
from recon_ray.figures.shapes import (
    attention_scale,
    clouds_of,
    panels_of,
    shape_figure,
    sheet_figure,
    write_clouds,
)
from recon_ray.figures.views import Reconstruction, ShapeView


@pytest.fixture
def view():
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (200, 3)).astype(np.float32)
    number = np.arange(200)
    made = Reconstruction(number < 80, number >= 60, points[60:] + 0.01, 0.25)
    values = np.linspace(0, 2, 200, dtype=np.float32)
    values[:10] = np.nan
    return ShapeView("01-cup", "cup\na/b/cup_0001", points, made, {"class": values})


def only(view, **changes):
    fields = {name: getattr(view, name) for name in ("name", "title", "points")}
    return ShapeView(**fields, **changes)


def test_a_row_of_the_sheet_shows_input_visible_masked_predicted_and_both(tmp_path, view):
    view = only(view, reconstruction=view.reconstruction)
    pixels = read(sheet_figure([view], tmp_path / "new" / "s.png"))
    _, seen, masked, made, both = np.array_split(pixels[:, 60:], 5, axis=1)
    assert is_blue(seen) > 500
    assert is_orange(seen) == 0
    assert is_blue(masked) == is_orange(masked) == 0
    assert is_orange(made) > 500
    assert is_blue(made) == 0
    assert is_blue(both) > 300
    assert is_orange(both) > 300


def test_overlap_of_masked_and_visible_patches_is_marked(view):
    masked = panels_of(view)[2]
    assert masked.heading == "masked patches\noverlap with visible ones"
    assert [(len(points), color) for points, color in masked.groups][1] == (20, OVERLAP_COLOR)
    assert len(masked.groups[0][0]) == 120


def test_more_shapes_make_a_taller_sheet_framed_by_the_input(tmp_path, view):
    one, three = (read(sheet_figure([view] * n, tmp_path / f"{n}.png")) for n in (1, 3))
    assert one.shape[1] == three.shape[1]
    assert three.shape[0] > 2 * one.shape[0]
    far = view.reconstruction._replace(prediction=view.reconstruction.prediction + 100)
    pixels = read(sheet_figure([only(view, reconstruction=far)], tmp_path / "s.png"))
    assert is_orange(pixels[80:]) == 0  # below the headings
    assert is_blue(pixels[80:]) > 500


def test_a_shape_without_reconstruction_has_the_input_and_the_tokens(tmp_path, view):
    attention = only(view, attention=view.attention)
    assert [panel.heading for panel in panels_of(attention)] == ["input", "class token"]
    narrow = read(shape_figure(attention, tmp_path / "a.png"))
    wide = read(shape_figure(view, tmp_path / "b.png"))
    assert narrow.shape[1] < wide.shape[1]
    assert narrow.shape[0] < wide.shape[0]  # one row of panels
    assert is_orange(narrow) > 300


def test_one_repeated_point_makes_a_picture_and_no_shape_none(tmp_path):
    values = {"class": np.ones(5, dtype=np.float32)}
    view = ShapeView("x", "x", np.zeros((5, 3), dtype=np.float32), None, values)
    assert shape_figure(view, tmp_path / "x.png").is_file()
    nothing = np.full(5, np.nan, dtype=np.float32)
    assert ValueScale.over([nothing]) == ValueScale.over([]) == ValueScale(0.5, 2.0)
    with pytest.raises(ValueError, match="at least one"):
        sheet_figure([], tmp_path / "s.png")


def test_values_go_from_the_first_to_the_last_color_and_unseen_points_have_their_own():
    values = np.array([np.nan, 0.2, 1.0, 2.0, 5.0], dtype=np.float32)
    scale = ValueScale.over([values, values[:2]])
    assert (scale.low, scale.high) == (pytest.approx(0.2), 5.0)
    assert scale.labels() == {0.0: "0.20", 0.25: "1", 1.0: "5.00"}
    colors = scale.colors(values)
    np.testing.assert_array_equal(colors[0], rgb(UNSEEN_COLOR))
    for color, anchor in zip(colors[1:], (0, 1, None, -1), strict=True):
        if anchor is not None:
            np.testing.assert_allclose(color, rgb(VALUE_COLORS[anchor]), atol=1e-6)
    # Twice an even share is a quarter of the way from 1 to 5: at 7/16 of all colors.
    between = rgb(VALUE_COLORS[1]) + 0.75 * (rgb(VALUE_COLORS[2]) - rgb(VALUE_COLORS[1]))
    np.testing.assert_allclose(colors[3], between, atol=1e-6)


def test_flat_attention_looks_flat():
    """Differences of rounding are no attention: no hot color, and none of a picture by itself."""
    noise = np.random.default_rng(0).uniform(-1e-4, 1e-4, 500).astype(np.float32)
    flat = np.float32(1) + noise
    neutral = rgb(VALUE_COLORS[1])
    for pictures in ([flat], [flat, np.array([0.1, 9], dtype=np.float32)]):
        colors = ValueScale.over(pictures).colors(flat)
        np.testing.assert_allclose(colors, np.broadcast_to(neutral, colors.shape), atol=1e-3)


def test_a_sheet_has_one_scale_and_prints_its_range(tmp_path, view, monkeypatch):
    strong = {"class": np.linspace(0.3, 7.5, 200, dtype=np.float32)}
    weak = {"class": np.linspace(0.9, 1.1, 200, dtype=np.float32)}
    views = [only(view, attention=values) for values in (strong, weak)]
    scale = attention_scale(views)
    assert (scale.low, scale.high) == (pytest.approx(0.3), 7.5)
    printed = []
    monkeypatch.setattr(shapes, "_draw_bar", lambda *arguments: printed.append(arguments[-1]))
    sheet_figure(views, tmp_path / "s.png")
    assert printed == [{0.0: "0.30", 0.25: "1", 1.0: "7.50"}]
    pixels = read(sheet_figure(views, tmp_path / "s.png"))
    first, second = np.array_split(pixels[80:-60, pixels.shape[1] // 2 :], 2)
    hot = [
        ((part[..., 0] > 90) & (part[..., 1:] < 60).all(axis=-1)).sum() for part in (first, second)
    ]
    assert hot[0] > 200
    assert hot[1] == 0
    _, dark = clouds_of(views[1], scale)["attention-class"]
    assert dark[:, 1].min() > 150  # of no red


def read_ply(path):
    """Read a binary PLY file of points without the library that wrote it."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = [line.split() for line in header.decode().splitlines()]
    assert lines[:2] == [["ply"], ["format", "binary_little_endian", "1.0"]]
    assert [line[1] for line in lines if line[0] == "element"] == ["vertex"]
    kinds = {"float": "<f4", "uchar": "u1"}
    table = np.frombuffer(body, [(w[2], kinds[w[1]]) for w in lines if w[0] == "property"])
    assert ["element", "vertex", str(len(table))] in lines
    return (
        np.stack([table[name] for name in names], 1) for names in ("xyz", ("red", "green", "blue"))
    )


def test_every_kind_of_cloud_is_a_ply_file_with_its_colors(tmp_path, view):
    files = write_clouds(view, tmp_path / "new")
    kinds = ["input", "visible", "masked", "prediction", "completed", "attention-class"]
    assert [path.name for path in files] == [f"01-cup-{kind}.ply" for kind in kinds]
    for kind, path, size in zip(kinds, files, (200, 80, 140, 140, 220, 200), strict=True):
        points, colors = read_ply(path)
        assert len(points) == size
        np.testing.assert_array_equal(points, clouds_of(view)[kind][0])
        np.testing.assert_array_equal(colors, clouds_of(view)[kind][1])


def test_the_camera_has_y_up_and_keeps_lengths():
    axes = np.eye(3, dtype=np.float32)
    position, nearness = project(axes)
    assert position[1, 0] == pytest.approx(0, abs=1e-6)
    assert position[1, 1] > 0.9
    # Orthographic: the three coordinates of each axis still have length one.
    lengths = np.hypot(np.hypot(*position.T), nearness)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    assert nearness[2] > 0  # z comes towards the viewer
    assert position[0, 0] > 0  # x goes to the right
