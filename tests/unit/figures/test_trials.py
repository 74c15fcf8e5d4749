"""Charts of many runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recon_ray.figures.trials import Curve, draw_beside, draw_parameter, draw_trial_curves


def curves(count: int) -> list[Curve]:
    steps = list(range(20))
    return [Curve(f"lr {i}", steps, [1 / (1 + s * (i + 1)) for s in steps]) for i in range(count)]


def test_more_groups_than_colors_leave_the_others_gray(tmp_path: Path) -> None:
    shown = [f"lr {i}" for i in range(3)]
    few = draw_trial_curves(tmp_path / "few.png", curves(3), "loss", shown=shown)
    many = draw_trial_curves(tmp_path / "many.png", curves(12), "loss", shown=shown)
    assert _ink(many) > _ink(few)


@pytest.mark.parametrize(
    "values",
    [[1e-5, 1e-3, 1e-3, 1e-1], ["full", "mlp3", "mlp3", "a long name of it"], [0, 0, 1, 1]],
)
def test_numbers_and_names_are_drawn(tmp_path: Path, values: list[object]) -> None:
    path = draw_parameter(tmp_path / "x.png", "x", values, [0.1, 0.2, 0.3, 0.4], "accuracy")
    assert _ink(path) > 500


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no curve"):
        draw_trial_curves(tmp_path / "x.png", [], "loss", shown=[])
    with pytest.raises(ValueError, match="2 values with 1 results"):
        draw_parameter(tmp_path / "x.png", "x", [1, 2], [0.5], "accuracy")
    with pytest.raises(ValueError, match="2 names, 1 results, 2 published"):
        draw_beside(tmp_path / "x.png", ["a", "b"], [[1.0]], [None, 2.0])


def test_results_are_drawn_beside_published_numbers_where_there_are_any(tmp_path: Path) -> None:
    def count(results: list[float], published: float | None) -> tuple[int, int]:
        """Pixels of our dots and of the published mark, legend included."""
        path = draw_beside(tmp_path / "x.png", ["a", "b"], [results, []], [published, None])
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        red, blue = pixels[..., 0], pixels[..., 2]
        return int((blue - red > 80).sum()), int((red - blue > 120).sum())

    assert count([], None) == (0, 0)
    ours, theirs = count([40.0, 60.0], 90.0)
    assert ours > 100
    assert theirs > 100
    assert count([40.0], None)[1] == 0


def _ink(path: Path) -> int:
    return int((np.asarray(Image.open(path).convert("L")) < 230).sum())
