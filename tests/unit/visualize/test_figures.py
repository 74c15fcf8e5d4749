from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from recon_ray.visualize import curve_figure, reconstruction_figure
from recon_ray.visualize.figures import _rows, project


@pytest.fixture
def clouds():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(2, 200, 3, generator=generator) - 0.5
    return points, points[:, :80], points[:, 60:], points[:, 60:] + 0.01


def read(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def is_orange(pixels):
    return (pixels[..., 0] - pixels[..., 2] > 60).sum()


def is_blue(pixels):
    return (pixels[..., 2] - pixels[..., 0] > 60).sum()


def test_reconstruction_has_three_panels_a_shape(tmp_path, clouds):
    path = reconstruction_figure(*clouds, tmp_path / "new" / "r.png", ["chair", "lamp"])
    pixels = read(path)
    thirds = np.array_split(pixels, 3, axis=1)
    assert is_blue(thirds[0]) == 0
    assert is_blue(thirds[1]) > 500
    assert is_orange(thirds[1]) == 0
    assert is_blue(thirds[2]) > 500
    assert is_orange(thirds[2]) > 500


def test_more_shapes_make_a_taller_picture(tmp_path, clouds):
    two = read(reconstruction_figure(*clouds, tmp_path / "2.png"))
    one = read(reconstruction_figure(*(c[:1] for c in clouds), tmp_path / "1.png"))
    assert one.shape[1] == two.shape[1]
    assert two.shape[0] > 1.7 * one.shape[0]


def test_overlapping_patches_are_counted_once(clouds):
    points, visible, masked, prediction = clouds
    center = torch.tensor([0.1, -0.2, 0.3])
    # Copies of a point as patches give them: equal up to rounding, in any order.
    repeated = torch.cat([visible, (visible - center) + center], dim=1)
    (_, shown, rest, made), _ = _rows(points, repeated, masked, prediction, None)
    assert len(shown) == 80
    assert len(rest) == 120  # points 60 to 79 lie in visible patches too
    assert len(made) == 140


def test_patches_of_different_sizes_are_accepted(tmp_path, clouds):
    points = clouds[0]
    groups = [points[0, :64].reshape(2, 32, 3), points[1, :20].numpy()]
    path = reconstruction_figure(list(points), groups, groups, groups, tmp_path / "r.png")
    assert path.stat().st_size > 1000


def test_one_repeated_point_still_makes_a_picture(tmp_path):
    same = torch.zeros(1, 5, 3)
    assert reconstruction_figure(same, same, same, same, tmp_path / "r.png").is_file()


def test_numbers_of_shapes_must_agree(tmp_path, clouds):
    points, visible, masked, prediction = clouds
    with pytest.raises(ValueError, match=r"\[2, 2, 1, 2\]"):
        reconstruction_figure(points, visible, masked[:1], prediction, tmp_path / "r.png")
    with pytest.raises(ValueError, match="at least one"):
        reconstruction_figure([], [], [], [], tmp_path / "r.png")


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


def test_curves_are_drawn_with_gaps(tmp_path):
    values = [1.0, float("nan"), 0.5, 0.2]
    path = curve_figure(
        [0, 1, 2, 3], {"loss": values, "val": [1, 1, 1, 1]}, tmp_path / "c.png",
        title="loss", log_y=True,
    )  # fmt: skip
    pixels = read(path)
    assert is_blue(pixels) > 50
    assert is_orange(pixels) > 500


def test_curves_must_have_the_length_of_the_steps(tmp_path):
    with pytest.raises(ValueError, match="'loss' has 2 values for 3 steps"):
        curve_figure([0, 1, 2], {"loss": [1, 2]}, tmp_path / "c.png")
    with pytest.raises(ValueError, match="series is empty"):
        curve_figure([0], {}, tmp_path / "c.png")


def test_importing_needs_neither_matplotlib_nor_a_display():
    code = "import sys, recon_ray.visualize; print('matplotlib' in sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == "False"
