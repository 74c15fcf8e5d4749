"""PNG figures: masked reconstructions and training curves. Needs no display."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from recon_ray.visualize.ply import Array, to_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Clouds: TypeAlias = Tensor | Sequence[Array]
Points: TypeAlias = npt.NDArray[np.float32]

AZIMUTH, ELEVATION = math.radians(35.0), math.radians(20.0)  # one camera for all pictures
DOTS_PER_INCH = 150
PANEL_INCHES = 2.3
FRAME_MARGIN = 1.15
TEXT_COLOR = "#30343b"
QUIET_COLOR = "#8b919b"
INPUT_COLOR = "#48566b"
VISIBLE_COLOR = "#2f6db5"
MASKED_COLOR = "#b9bfc9"
PREDICTION_COLOR = "#e0762f"
SERIES_COLORS = ("#2f6db5", "#e0762f", "#3a9a6d", "#a0529f", "#8a7a33", "#c2405a", "#48566b")
SAME_POINT = 1e-4  # distance, as a fraction of the shape's size, below which points are one
HAZE = 0.5  # how far the rearmost points fade towards white
COLUMNS = ("input", "visible patches\nmasked patches", "visible patches\nreconstruction")
COLUMN_COLORS = (
    (INPUT_COLOR,),
    (VISIBLE_COLOR, QUIET_COLOR),
    (VISIBLE_COLOR, PREDICTION_COLOR),
)


def reconstruction_figure(
    points: Clouds,
    visible: Clouds,
    masked: Clouds,
    prediction: Clouds,
    path: Path | str,
    titles: Sequence[str] | None = None,
) -> Path:
    """Draw what a model saw of some shapes, what was hidden, and what it made of it.

    One row a shape; columns are the input, its visible and masked patches, and the visible patches
    with the reconstruction of the masked ones. All panels share one orthographic camera (y up) and
    equal axes; within a row they share the scale. Patches overlap: points that lie in a visible
    patch are drawn as visible only, and repeated points once.

    Args:
        points: S clouds (N, 3).
        visible: For each shape, the points of its visible patches (..., 3), in the cloud's frame.
        masked: The same of its masked patches.
        prediction: The same of the reconstructed patches.
        path: PNG file to write; its folder is made.
        titles: S names, written beside the rows.

    Returns:
        The path.

    Raises:
        ValueError: If the numbers of shapes differ or there is none.
    """
    rows = _rows(points, visible, masked, prediction, titles)
    headroom = 0.55
    figure = _new_figure(3 * PANEL_INCHES, len(rows) * PANEL_INCHES + headroom)
    top = 1 - headroom / (len(rows) * PANEL_INCHES + headroom)
    axes = figure.subplots(
        len(rows),
        3,
        squeeze=False,
        gridspec_kw={
            "left": 0.04, "right": 1, "bottom": 0, "top": top, "wspace": 0, "hspace": 0
        },
    )  # fmt: skip
    for column, (heading, colors) in enumerate(zip(COLUMNS, COLUMN_COLORS, strict=True)):
        _write_heading(axes[0, column], heading, colors)
    for index, clouds in enumerate(rows):
        _draw_row(axes[index], *clouds)
        if titles is not None:
            _write_title(axes[index, 0], titles[index])
    return _save(figure, path)


def curve_figure(
    steps: Sequence[float],
    series: Mapping[str, Sequence[float]],
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
        x_label: What the steps are.
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
    figure = _new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    for index, (name, values) in enumerate(series.items()):
        color = SERIES_COLORS[index % len(SERIES_COLORS)]
        marker = "o" if len(steps) <= 12 else None
        axes.plot(steps, values, label=name, color=color, linewidth=1.8, marker=marker, ms=4)
    _style_axes(axes, title, x_label, log_y)
    if len(series) > 1 or not title:
        axes.legend(frameon=False, fontsize=9, labelcolor=TEXT_COLOR)
    figure.tight_layout()
    return _save(figure, path)


def project(points: Points) -> tuple[Points, npt.NDArray[np.float32]]:
    """Look at points from the figures' camera.

    Args:
        points: (N, 3), y up.

    Returns:
        (N, 2) positions in the picture, right and up, in the points' own unit, and (N,) nearness
        (greater is closer to the viewer).
    """
    sin_a, cos_a, sin_e, cos_e = (
        f(angle) for angle in (AZIMUTH, ELEVATION) for f in (math.sin, math.cos)
    )
    right = np.array([cos_a, 0, -sin_a], dtype=np.float32)
    towards = np.array([sin_a * cos_e, sin_e, cos_a * cos_e], dtype=np.float32)
    up = np.cross(towards, right)
    return points @ np.stack([right, up], axis=1), points @ towards


def _rows(
    points: Clouds,
    visible: Clouds,
    masked: Clouds,
    prediction: Clouds,
    titles: Sequence[str] | None,
) -> list[tuple[Points, Points, Points, Points]]:
    counts = [len(clouds) for clouds in (points, visible, masked, prediction)]
    if titles is not None:
        counts.append(len(titles))
    if len(set(counts)) != 1 or counts[0] == 0:
        raise ValueError(f"numbers of shapes are {counts}: give as many of each, at least one.")
    rows = []
    for cloud, seen, hidden, made in zip(points, visible, masked, prediction, strict=True):
        cloud, seen, hidden = to_points(cloud), to_points(seen), to_points(hidden)
        grid = SAME_POINT * float(np.ptp(cloud, axis=0).max() or 1.0)
        both = np.concatenate([seen, hidden])
        # Patches are kept relative to their centers: copies of a point differ by rounding.
        first = np.unique(np.round(both / grid), axis=0, return_index=True)[1]
        shown, rest = seen[first[first < len(seen)]], both[first[first >= len(seen)]]
        rows.append((cloud, shown, rest, to_points(made)))
    return rows


def _draw_row(
    axes: npt.NDArray, cloud: Points, visible: Points, masked: Points, prediction: Points
) -> None:
    # Every panel of a row is framed by the input, whatever the reconstruction does.
    frame = _Frame.around(cloud)
    panels: list[list[tuple[Points, str]]] = [
        [(cloud, INPUT_COLOR)],
        [(masked, MASKED_COLOR), (visible, VISIBLE_COLOR)],
        [(prediction, PREDICTION_COLOR), (visible, VISIBLE_COLOR)],
    ]
    for panel, groups in zip(axes, panels, strict=True):
        _draw_points(panel, groups, frame)


@dataclass(frozen=True)
class _Frame:
    """The part of space that a panel shows.

    Attributes:
        x: Middle of the panel, to the right.
        y: Middle of the panel, up.
        radius: Half the panel's side.
        nearness: Nearness of the foremost and the rearmost point.
        dot: Area of a point in square typographic points.
    """

    x: float
    y: float
    radius: float
    nearness: tuple[float, float]
    dot: float

    @staticmethod
    def around(cloud: Points) -> _Frame:
        position, nearness = project(cloud)
        low, high = position.min(axis=0), position.max(axis=0)
        x, y = (low + high) / 2
        radius = FRAME_MARGIN * float((high - low).max() / 2 or 1.0)
        dot = float(np.clip(6000 / len(cloud), 2.0, 12.0))
        return _Frame(x, y, radius, (float(nearness.max()), float(nearness.min())), dot)


def _draw_points(axes: Axes, groups: Sequence[tuple[Points, str]], frame: _Frame) -> None:
    """Scatter colored groups of points together, far ones first and fading."""
    position, nearness = project(np.concatenate([group for group, _ in groups]))
    front, rear = frame.nearness
    depth = np.clip((front - nearness) / max(front - rear, 1e-9), 0, 1)[:, None]
    colors = np.concatenate([np.tile(_rgb(color), (len(group), 1)) for group, color in groups])
    colors = colors + (1 - colors) * HAZE * depth
    order = np.argsort(nearness)
    x, y = position[order, 0], position[order, 1]
    axes.scatter(x, y, s=frame.dot, c=colors[order], linewidths=0)
    axes.set_xlim(frame.x - frame.radius, frame.x + frame.radius)
    axes.set_ylim(frame.y - frame.radius, frame.y + frame.radius)
    axes.set_aspect("equal")
    axes.set_axis_off()


def _rgb(color: str) -> npt.NDArray[np.float32]:
    return np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)], dtype=np.float32)


def _write_heading(axes: Axes, heading: str, colors: Sequence[str]) -> None:
    """Write the column's name, each line in the color of the points that it names."""
    lines = heading.split("\n")
    for index, (line, color) in enumerate(zip(lines, colors, strict=True)):
        axes.annotate(
            line,
            (0.5, 1.0),
            xytext=(0, 6 + 14 * (len(lines) - 1 - index)),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=10,
            color=color,
        )


def _write_title(axes: Axes, title: str) -> None:
    axes.text(
        -0.02, 0.5, title, transform=axes.transAxes, rotation=90, ha="right", va="center",
        fontsize=10, color=TEXT_COLOR,
    )  # fmt: skip


def _style_axes(axes: Axes, title: str, x_label: str, log_y: bool) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(QUIET_COLOR)
    axes.grid(axis="y", color="#e6e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT_COLOR, labelsize=9)
    axes.set_xlabel(x_label, color=TEXT_COLOR, fontsize=10)
    axes.set_title(title, color=TEXT_COLOR, fontsize=11, loc="left")
    if log_y:
        axes.set_yscale("log")
    axes.margins(x=0.01)


def _new_figure(width: float, height: float) -> Figure:
    """Make a figure of its own, without pyplot: no display, no global state, safe in threads."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path | str) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path
