"""Charts of many runs, and the report that holds them: opened in a browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recon_ray.figures.html_report import Report
from recon_ray.figures.trials import Curve, draw_beside, draw_parameter, draw_trial_curves

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH = 1280


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


def page(folder: Path) -> str:
    report = Report("Sweep <b>")
    report.text("12 trials & more")
    report.heading("Summary")
    cells = [[f"{i}e-4", "full", "3", "91.20 % ± 0.40 %", "90 %", "92 %"] for i in range(8)]
    head = ["optim.lr", "train.tune", "trials", "accuracy, mean ± std", "min", "max"]
    report.table(head, cells, marked=(0,))
    report.table(["row", "measured on"], [["a", "stand-in, scaled down"]], texts=(1,))
    drawn = draw_trial_curves(folder / "c.png", curves(4), "train/loss", shown=["lr 0", "lr 1"])
    by = draw_parameter(
        folder / "p.png", "optim.lr", [1e-5, 1e-3, 1e-1], [0.2, 0.9, 0.4], "accuracy"
    )
    report.figures([("curves", drawn), ("parameter", by)])
    report.folded("config.yaml", "job: finetune\n")
    return report.render()


def test_the_report_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "<title>Sweep &lt;b&gt;</title>" in text
    assert "12 trials &amp; more" in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "<script" not in text
    assert '<td class="text">stand-in, scaled down</td>' in text
    assert text.count("data:image/png;base64,") == 2


def test_the_report_is_readable_in_a_browser(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    source, picture = tmp_path / "report.html", tmp_path / "report.png"
    source.write_text(page(tmp_path))
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={WIDTH},1400",
        f"--screenshot={picture}", source.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape[1] == WIDTH
    # Nothing reaches beyond the page's margins, and both charts stand side by side.
    assert (pixels[:, -8:] > 235).all()
    dark = (pixels < 128).sum(axis=0)
    assert dark[100 : WIDTH // 2].sum() > 1000
    assert dark[WIDTH // 2 : WIDTH - 100].sum() > 1000


def _ink(path: Path) -> int:
    return int((np.asarray(Image.open(path).convert("L")) < 230).sum())
