"""PNG charts: training curves, confusion matrices, values by class. They need no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from recon_ray.figures.canvas import (
    GRID_COLOR,
    QUIET_COLOR,
    SERIES_COLORS,
    TEXT_COLOR,
    new_figure,
    save_figure,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COUNTED_CLASSES = 20  # most classes whose confusion matrix has room for counts in its cells
ABSENT_COLOR = "#f1f2f4"
BAR_COLOR = SERIES_COLORS[0]


def curve_figure(
    steps: Sequence[float],
    series: Mapping[str, Sequence[float] | npt.NDArray],
    path: Path | str,
    *,
    title: str = "",
    x_label: str = "step",
    log_y: bool = False,
) -> Path:
    """Draw training curves.

    Args:
        steps: Positions on the horizontal axis.
        series: Name to values, as many as there are steps; NaN leaves a gap.
        path: PNG file to write; its folder is made.
        title: Heading.
        x_label: Name of the horizontal axis.
        log_y: Draw the vertical axis in logarithms.

    Returns:
        The path.

    Raises:
        ValueError: If there is no series or one has another length than the steps.
    """
    if not series:
        raise ValueError("series is empty: give at least one curve.")
    for name, values in series.items():
        if len(values) != len(steps):
            raise ValueError(f"curve {name!r} has {len(values)} values for {len(steps)} steps.")
    figure = new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    for index, (name, values) in enumerate(series.items()):
        color = SERIES_COLORS[index % len(SERIES_COLORS)]
        marker = "o" if len(steps) <= 12 else None
        axes.plot(steps, values, label=name, color=color, linewidth=1.8, marker=marker, ms=4)
    style_axes(axes, title)
    axes.grid(axis="y", color=GRID_COLOR, linewidth=0.8)
    axes.set_xlabel(x_label, color=TEXT_COLOR, fontsize=10)
    axes.margins(x=0.01)
    if log_y:
        axes.set_yscale("log")
    if len(series) > 1 or not title:
        axes.legend(frameon=False, fontsize=9, labelcolor=TEXT_COLOR)
    figure.tight_layout()
    return save_figure(figure, path)


def draw_confusion(
    path: Path | str, matrix: npt.NDArray, classes: Sequence[str], title: str
) -> Path:
    """Draw a confusion matrix.

    Colors are fractions of the row. With up to 20 classes every cell that is not empty shows its
    count. The row of a class without shapes is gray.

    Args:
        path: PNG file to write; its folder is made.
        matrix: (C, C) counts; rows are the true classes, columns the predicted ones.
        classes: C names.
        title: Heading.

    Returns:
        The path.

    Raises:
        ValueError: If the matrix is not square with a row for every name, or has no class.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from sklearn.metrics import ConfusionMatrixDisplay

    if not len(classes) or matrix.shape != (len(classes), len(classes)):
        raise ValueError(
            f"the confusion matrix has shape {matrix.shape} for {len(classes)} classes."
        )
    side = float(np.clip(0.42 * len(classes), 3.2, 7.5))
    margin = 0.45 + 0.065 * max(map(len, classes))
    figure = new_figure(side + margin + 0.9, side + margin + 0.5)
    axes = figure.add_subplot()
    totals = matrix.sum(axis=1, keepdims=True)
    fractions = matrix / np.maximum(totals, 1)
    display = ConfusionMatrixDisplay(fractions, display_labels=classes).plot(
        ax=axes,
        include_values=len(classes) <= COUNTED_CLASSES,
        cmap=LinearSegmentedColormap.from_list(
            "shades", ["#ffffff", "#7fa8d6", "#123a6b"]
        ).with_extremes(bad=ABSENT_COLOR),
        xticks_rotation="vertical",
        colorbar=False,
        # By its square root a fraction of one in twenty is still seen.
        im_kw={"norm": PowerNorm(0.5, vmin=0, vmax=1)},
        text_kw={"fontsize": 9 if len(classes) <= 12 else 7},
    )
    display.im_.set_data(np.where(totals > 0, fractions, np.nan))
    if display.text_ is not None:
        for index, count in np.ndenumerate(matrix):
            display.text_[index].set_text(f"{count:g}" if count else "")
            display.text_[index].set_color("white" if fractions[index] > 0.35 else TEXT_COLOR)
    _style_confusion(axes, len(classes), title)
    bar = figure.colorbar(display.im_, ax=axes, shrink=0.6, pad=0.02)
    bar.set_label("fraction of the true class", color=TEXT_COLOR, fontsize=9)
    bar.ax.tick_params(colors=TEXT_COLOR, labelsize=8)
    bar.outline.set_visible(False)
    figure.tight_layout()
    return save_figure(figure, path)


def _style_confusion(axes: Axes, num_classes: int, title: str) -> None:
    axes.set_title(title, color=TEXT_COLOR, fontsize=11, loc="left")
    axes.set_xlabel("predicted", color=TEXT_COLOR, fontsize=10)
    axes.set_ylabel("true", color=TEXT_COLOR, fontsize=10)
    axes.tick_params(colors=TEXT_COLOR, length=0, labelsize=9 if num_classes <= 25 else 7)
    for spine in axes.spines.values():
        spine.set_color(QUIET_COLOR)
    # Thin lines between the cells, to follow a row of forty.
    edges = np.arange(1, num_classes) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color=GRID_COLOR, linewidth=0.5)
    axes.tick_params(which="minor", length=0)


def draw_per_class(
    path: Path | str, names: Sequence[str], values: Sequence[float], title: str
) -> Path:
    """Draw one bar a class, and the mean over the classes that occur.

    Args:
        path: PNG file to write; its folder is made.
        names: C names.
        values: C fractions of 1; NaN for a class that does not occur, which is marked absent.
        title: Heading.

    Returns:
        The path.

    Raises:
        ValueError: If the numbers of names and values differ, or are 0.
    """
    heights = np.asarray(values, dtype=np.float64)
    if not len(names) or heights.shape != (len(names),):
        raise ValueError(f"{len(names)} names with values of shape {heights.shape}.")
    figure = new_figure(6.4, 1.0 + 0.22 * len(names))
    axes = figure.add_subplot()
    rows = np.arange(len(names))
    axes.barh(rows, np.nan_to_num(heights), height=0.72, color=BAR_COLOR)
    for row, value in enumerate(heights):
        is_absent = bool(np.isnan(value))
        axes.text(
            1.02,
            row,
            "absent" if is_absent else f"{value:.1%}",
            va="center",
            fontsize=8,
            color=QUIET_COLOR if is_absent else TEXT_COLOR,
        )
    style_axes(axes, title)
    _mark_mean(axes, heights)
    axes.grid(axis="x", color=GRID_COLOR, linewidth=0.8)
    axes.set_yticks(rows, names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{tick:.0%}" for tick in np.linspace(0, 1, 6)])
    figure.tight_layout()
    return save_figure(figure, path)


def _mark_mean(axes: Axes, heights: npt.NDArray[np.float64]) -> None:
    present = heights[~np.isnan(heights)]
    if len(present):
        mean = float(present.mean())
        axes.axvline(mean, color=SERIES_COLORS[1], linewidth=1.2)
        axes.set_xlabel(
            f"mean over {len(present)} classes {mean:.1%}", color=SERIES_COLORS[1], fontsize=9
        )
