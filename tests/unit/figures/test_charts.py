from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from drawn_pixels import is_blue, is_orange, read

from recon_ray.data.sources.cards import CARDS
from recon_ray.figures import charts as figures
from recon_ray.figures.charts import curve_figure, draw_confusion, draw_per_class


def test_curves_are_drawn_with_gaps(tmp_path):
    values = [1.0, float("nan"), 0.5, 0.2]
    path = curve_figure(
        [0, 1, 2, 3], {"loss": values, "val": [1, 1, 1, 1]}, tmp_path / "c.png",
        title="loss", log_y=True,
    )  # fmt: skip
    pixels = read(path)
    assert is_blue(pixels) > 50
    assert is_orange(pixels) > 500
    with pytest.raises(ValueError, match="'loss' has 2 values for 3 steps"):
        curve_figure([0, 1, 2], {"loss": [1, 2]}, tmp_path / "c.png")
    with pytest.raises(ValueError, match="series is empty"):
        curve_figure([0], {}, tmp_path / "c.png")


def test_a_confusion_is_colored_by_the_fraction_of_its_row(tmp_path):
    # The same fractions from other counts give the same colors: only the written counts differ.
    few = np.array([[1, 1], [0, 2]])
    many = np.array([[7, 7], [0, 9]])
    first, second = (
        read(draw_confusion(tmp_path / f"{i}.png", matrix, ["cup", "lamp"], "t"))
        for i, matrix in enumerate((few, many))
    )
    assert first.shape == second.shape
    assert (first != second).any(axis=-1).mean() < 0.01  # digits
    diagonal = draw_confusion(tmp_path / "d.png", np.diag([2, 2]), ["cup", "lamp"], "t")
    dark = [(pixels[..., 0] < 40).sum() for pixels in (read(diagonal), first)]
    assert dark[0] > 1.5 * dark[1]  # two cells of 1 beside one


def test_the_row_of_an_absent_class_is_gray_and_a_confusion_fits_its_classes(tmp_path):
    pixels = read(draw_confusion(tmp_path / "c.png", np.diag([3, 0]), ["cup", "lamp"], "t"))
    gray = (pixels == [0xF1, 0xF2, 0xF4]).all(axis=-1)
    assert gray.mean() > 0.1
    full = read(draw_confusion(tmp_path / "f.png", np.diag([3, 3]), ["cup", "lamp"], "t"))
    assert not (full == [0xF1, 0xF2, 0xF4]).all(axis=-1).any()
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for 2 classes"):
        draw_confusion(tmp_path / "c.png", np.zeros((2, 3)), ["a", "b"], "t")
    with pytest.raises(ValueError, match="0 classes"):
        draw_confusion(tmp_path / "c.png", np.zeros((0, 0)), [], "t")


def test_forty_classes_have_room_for_their_names_and_no_counts(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure) or path)
    names = CARDS["modelnet40"].classes
    for count in (10, 40):
        draw_confusion(tmp_path / "c.png", np.eye(count) * 100, names[:count], "t")
    ten, forty = (figure.axes[0] for figure in drawn)
    assert [text.get_text() for text in ten.texts if text.get_text()] == ["100"] * 10
    assert len(forty.texts) == 0
    labels = [tick.get_window_extent() for tick in forty.get_yticklabels()]
    assert len(labels) == 40
    assert all(lower.y1 <= upper.y0 for upper, lower in itertools.pairwise(labels))


def test_bars_are_as_long_as_their_values_and_absent_classes_have_none(tmp_path):
    def blue(values):
        return is_blue(read(draw_per_class(tmp_path / "b.png", ["cup", "lamp"], values, "t")))

    half, full = blue([0.5, 0.5]), blue([1.0, 1.0])
    assert half > 1000
    assert full / half == pytest.approx(2, rel=0.05)  # the line of the mean lies on the bars
    assert blue([0.5, float("nan")]) == pytest.approx(half / 2, rel=0.05)
    assert blue([float("nan")] * 2) == 0
    with pytest.raises(ValueError, match=r"2 names with values of shape \(1,\)"):
        draw_per_class(tmp_path / "b.png", ["cup", "lamp"], [0.5], "t")


def test_importing_needs_neither_matplotlib_nor_a_display():
    code = "import sys, recon_ray.figures; print('matplotlib' in sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == "False"
