"""Point clouds in panels: one camera for all pictures, equal axes, near points in front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from recon_ray.figures.canvas import QUIET_COLOR, TEXT_COLOR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

Points: TypeAlias = npt.NDArray[np.float32]

AZIMUTH, ELEVATION = math.radians(35.0), math.radians(20.0)
FRAME_MARGIN = 1.15
HAZE = 0.5  # how far the rearmost points fade towards white
INPUT_COLOR = "#48566b"
VISIBLE_COLOR = "#2f6db5"
MASKED_COLOR = "#5d6673"
OVERLAP_COLOR = "#aab6c8"  # points of masked patches that visible ones show as well
PREDICTION_COLOR = "#e0762f"
#: Points in no patch, in pictures of values.
UNSEEN_COLOR = "#e4e7eb"
#: Colors of values from low to high, evenly spaced.
VALUE_COLORS = ("#8fa9cf", "#c9b59a", "#f0a03c", "#d83a2b", "#6d0a24")


def project(points: Points) -> tuple[Points, npt.NDArray[np.float32]]:
    """Look at points from the figures' camera, which is orthographic.

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


@dataclass(frozen=True)
class Frame:
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
    def around(cloud: Points, inches: float = 2.3) -> Frame:
        """Frame a cloud.

        Args:
            cloud: (N, 3) points.
            inches: Side of the panel, by which the points are drawn larger or smaller.
        """
        position, nearness = project(cloud)
        low, high = position.min(axis=0), position.max(axis=0)
        x, y = (low + high) / 2
        radius = FRAME_MARGIN * float((high - low).max() / 2 or 1.0)
        dot = float(np.clip(6000 / len(cloud), 2.0, 12.0)) * (inches / 2.3) ** 2
        return Frame(x, y, radius, (float(nearness.max()), float(nearness.min())), dot)


def draw_points(axes: Axes, groups: Sequence[tuple[Points, str]], frame: Frame) -> None:
    """Scatter groups of points, each of one color, together: far ones first and fading."""
    colors = np.concatenate([np.tile(rgb(color), (len(group), 1)) for group, color in groups])
    points = np.concatenate([group for group, _ in groups])
    front, rear = frame.nearness
    depth = np.clip((front - project(points)[1]) / max(front - rear, 1e-9), 0, 1)[:, None]
    _scatter(axes, points, colors + (1 - colors) * HAZE * depth, frame)


def draw_values(
    axes: Axes, points: Points, values: npt.NDArray[np.float32], frame: Frame
) -> tuple[float, float]:
    """Scatter points in the colors of their values; far ones first, none fading.

    Args:
        axes: Panel.
        points: (N, 3).
        values: (N,), NaN at points without a value.
        frame: Part of space in the panel.

    Returns:
        The values at the ends of the scale.
    """
    _scatter(axes, points, value_colors(values), frame)
    return value_range(values)


def value_range(values: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Return the ends of the color scale: the least value, and one that a hundredth exceeds."""
    known = values[~np.isnan(values)]
    if not len(known):
        return 0.0, 1.0
    return float(known.min()), float(np.percentile(known, 99))


def value_colors(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Color values by :data:`VALUE_COLORS` over their own range: (N,) to (N, 3) RGB in [0, 1]."""
    low, high = value_range(values)
    place = np.clip((np.nan_to_num(values, nan=low) - low) / max(high - low, 1e-12), 0, 1)
    anchors = np.stack([rgb(color) for color in VALUE_COLORS])
    steps = np.linspace(0, 1, len(anchors))
    colors = np.stack([np.interp(place, steps, anchors[:, i]) for i in range(3)], axis=1)
    colors[np.isnan(values)] = rgb(UNSEEN_COLOR)
    return colors.astype(np.float32)


def value_colormap() -> Colormap:
    """Return :data:`VALUE_COLORS` as a color map."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("values", VALUE_COLORS)


def rgb(color: str) -> npt.NDArray[np.float32]:
    """Return ``#rrggbb`` as three numbers in [0, 1]."""
    return np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)], dtype=np.float32)


def write_heading(axes: Axes, heading: str, colors: Sequence[str], size: float = 10) -> None:
    """Write a panel's heading above it, each line in its color."""
    lines = heading.split("\n")
    for index, (line, color) in enumerate(zip(lines, colors, strict=True)):
        axes.annotate(
            line,
            (0.5, 1.0),
            xytext=(0, 6 + 1.4 * size * (len(lines) - 1 - index)),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=size,
            color=color,
        )


def write_row_title(axes: Axes, title: str, size: float = 10) -> None:
    """Write a row's title upwards, left of its first panel; a second line is small and gray."""
    lines = title.split("\n")
    for index, line in enumerate(lines):
        axes.annotate(
            line,
            (-0.02, 0.5),
            xytext=(-1.4 * size * (len(lines) - 1 - index), 0),
            xycoords="axes fraction",
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="center",
            fontsize=size if index == 0 else 0.75 * size,
            color=TEXT_COLOR if index == 0 else QUIET_COLOR,
        )


def _scatter(axes: Axes, points: Points, colors: npt.NDArray[np.floating], frame: Frame) -> None:
    position, nearness = project(points)
    order = np.argsort(nearness)
    x, y = position[order, 0], position[order, 1]
    axes.scatter(x, y, s=frame.dot, c=colors[order], linewidths=0)
    axes.set_xlim(frame.x - frame.radius, frame.x + frame.radius)
    axes.set_ylim(frame.y - frame.radius, frame.y + frame.radius)
    axes.set_aspect("equal")
    axes.set_axis_off()
