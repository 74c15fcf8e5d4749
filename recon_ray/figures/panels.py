"""Point clouds in panels: one camera for all pictures, equal axes, near points in front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
#: Colors of values from low to high, evenly spaced; the second is that of an even share.
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


@dataclass(frozen=True)
class ValueScale:
    """Scale of color of values that are 1 where all are even (attention).

    It reaches from half to twice an even share at least, so that what is nearly even looks even.

    Attributes:
        low: Value of the first color.
        high: Value of the last color.
    """

    low: float = 0.5
    high: float = 2.0

    @classmethod
    def over(cls, pictures: Iterable[npt.NDArray[np.float32]]) -> ValueScale:
        """Return the scale that all pictures have in common: from their least to their most."""
        known = [values[~np.isnan(values)] for values in pictures]
        found = np.concatenate([*known, [cls.low, cls.high]])
        return cls(float(found.min()), float(found.max()))

    def place(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the places of values on the color bar, from 0 to 1; an even share is at 1/4."""
        even = 1 / (len(VALUE_COLORS) - 1)
        return np.interp(values, [self.low, 1.0, self.high], [0.0, even, 1.0])

    def colors(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Color values by :data:`VALUE_COLORS`: (N,) to (N, 3) RGB; NaN is :data:`UNSEEN_COLOR`."""
        anchors = np.stack([rgb(color) for color in VALUE_COLORS])
        steps, place = np.linspace(0, 1, len(anchors)), self.place(np.nan_to_num(values, nan=1.0))
        colors = np.stack([np.interp(place, steps, anchors[:, i]) for i in range(3)], axis=1)
        colors[np.isnan(values)] = rgb(UNSEEN_COLOR)
        return colors.astype(np.float32)

    def labels(self) -> dict[float, str]:
        """Return the labels of the color bar by their places."""
        ends = np.array([self.low, 1.0, self.high], dtype=np.float32)
        texts = (f"{self.low:.2f}", "1", f"{self.high:.2f}")
        return dict(zip(self.place(ends).tolist(), texts, strict=True))


def draw_values(
    axes: Axes, points: Points, values: npt.NDArray[np.float32], scale: ValueScale, frame: Frame
) -> None:
    """Scatter points in the colors of their values; far ones first, none fading.

    Args:
        axes: Panel.
        points: (N, 3).
        values: (N,), NaN at points without a value.
        scale: Scale of color.
        frame: Part of space in the panel.
    """
    _scatter(axes, points, scale.colors(values), frame)


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
