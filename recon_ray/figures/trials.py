"""PNG charts of many runs: their curves over each other, and a parameter against the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

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

#: Values that span more than this are drawn on a logarithmic axis.
LOG_FROM = 20.0
OTHERS_COLOR = "#c3c9d1"


@dataclass(frozen=True)
class Curve:
    """Curve of one run: as many steps as values; runs of one group get the same color."""

    group: str
    steps: Sequence[float]
    values: Sequence[float]


def draw_trial_curves(
    path: Path | str, curves: Sequence[Curve], title: str, *, shown: Sequence[str]
) -> Path:
    """Draw the curves of many runs over each other.

    Args:
        path: PNG file to write; its folder is made.
        curves: At least one.
        title: Heading.
        shown: Groups that get a color and a line in the legend, the best first; the others are
            gray. As many as there are colors.

    Raises:
        ValueError: If there is no curve.
    """
    if not curves:
        raise ValueError("there is no curve to draw.")
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    colors = dict(zip(shown, SERIES_COLORS, strict=False))
    for curve in sorted(curves, key=lambda curve: curve.group in colors):
        color = colors.get(curve.group, OTHERS_COLOR)
        marker = "o" if len(curve.steps) <= 8 else None
        axes.plot(
            curve.steps, curve.values, color=color, linewidth=1.3, alpha=0.85, marker=marker, ms=3
        )
    has_others = any(curve.group not in colors for curve in curves)
    for group, color in {**colors, **({"others": OTHERS_COLOR} if has_others else {})}.items():
        axes.plot([], [], color=color, linewidth=2.4, label=group)
    style_axes(axes, title)
    axes.grid(axis="y", color=GRID_COLOR, linewidth=0.8)
    axes.set_xlabel("optimizer step", color=TEXT_COLOR, fontsize=10)
    axes.legend(frameon=False, fontsize=8, labelcolor=TEXT_COLOR)
    figure.tight_layout()
    return save_figure(figure, path)


def draw_parameter(
    path: Path | str, name: str, values: Sequence[object], results: Sequence[float], metric: str
) -> Path:
    """Draw what every trial gave against the value that one option had in it.

    Numbers lie on an axis, a logarithmic one if they span more than a factor of 20; anything else
    is put side by side. A dash marks the mean of the trials with the same value.

    Args:
        path: PNG file to write; its folder is made.
        name: The option.
        values: Its value in every trial.
        results: Number of every trial.
        metric: Name of these numbers.

    Raises:
        ValueError: If there is no trial, or the numbers of values and results differ.
    """
    if not values or len(values) != len(results):
        raise ValueError(f"{len(values)} values with {len(results)} results.")
    figure = new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    numbers = [float(value) for value in values if _is_number(value)]
    is_axis = len(numbers) == len(values)
    places = numbers if is_axis else _side_by_side(axes, values)
    axes.scatter(places, results, s=34, color=SERIES_COLORS[0], alpha=0.75, linewidths=0, zorder=3)
    if is_axis and min(numbers) > 0 and max(numbers) / min(numbers) > LOG_FROM:
        axes.set_xscale("log")
    _mark_means(axes, places, results)
    style_axes(axes, f"{metric} by {name}")
    axes.grid(color=GRID_COLOR, linewidth=0.8)
    axes.set_xlabel(name, color=TEXT_COLOR, fontsize=10)
    axes.set_ylabel(metric, color=TEXT_COLOR, fontsize=10)
    axes.margins(0.08)
    figure.tight_layout()
    return save_figure(figure, path)


def draw_beside(
    path: Path | str,
    names: Sequence[str],
    results: Sequence[Sequence[float]],
    published: Sequence[float | None],
) -> Path:
    """Draw the runs of several measurements beside published numbers, a line each, in percent.

    Args:
        path: PNG file to write; its folder is made.
        names: What is measured, from the top down.
        results: Numbers of the runs of each; empty where nothing was run.
        published: The published number of each, if there is one.

    Raises:
        ValueError: If there is nothing to draw, or the numbers of arguments differ.
    """
    if not names or not len(names) == len(results) == len(published):
        raise ValueError(f"{len(names)} names, {len(results)} results, {len(published)} published.")
    figure = new_figure(6.4, 1.0 + 0.2 * len(names))
    axes = figure.add_subplot()
    ours = [(value, line) for line, numbers in enumerate(results) for value in numbers]
    theirs = [(value, line) for line, value in enumerate(published) if value is not None]
    if theirs:
        places, lines = zip(*theirs, strict=True)
        axes.scatter(places, lines, marker="|", s=150, linewidths=2.4,
                     color=SERIES_COLORS[1], label="published", zorder=3)  # fmt: skip
    if ours:
        places, lines = zip(*ours, strict=True)
        axes.scatter(places, lines, s=26, alpha=0.75, linewidths=0,
                     color=SERIES_COLORS[0], label="ours, each run", zorder=4)  # fmt: skip
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    style_axes(axes, "accuracy or mIoU in %, beside the published number")
    axes.grid(color=GRID_COLOR, linewidth=0.8)
    if ours or theirs:
        axes.legend(frameon=False, fontsize=8, labelcolor=TEXT_COLOR, loc="upper center", ncols=2,
                    bbox_to_anchor=(0.5, -0.08))  # fmt: skip
    figure.tight_layout()
    return save_figure(figure, path)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _side_by_side(axes: Axes, values: Sequence[object]) -> list[float]:
    """Return places of values other than numbers, which are named on the axis."""
    names = list(dict.fromkeys(map(str, values)))
    rotation = 30 if max(map(len, names)) > 12 else 0
    axes.set_xticks(range(len(names)), names, rotation=rotation, fontsize=8)
    return [float(names.index(str(value))) for value in values]


def _mark_means(axes: Axes, places: Sequence[float], results: Sequence[float]) -> None:
    found: dict[float, list[float]] = {}
    for place, result in zip(places, results, strict=True):
        if math.isfinite(result):
            found.setdefault(place, []).append(result)
    means = {place: sum(own) / len(own) for place, own in found.items() if len(own) > 1}
    if means:
        axes.scatter([*means], [*means.values()], marker="_", s=520, color=SERIES_COLORS[1],
                     linewidths=2.2, zorder=4, label="mean")  # fmt: skip
        axes.legend(frameon=False, fontsize=8, labelcolor=QUIET_COLOR)
