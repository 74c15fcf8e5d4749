"""Pictures and PLY files of single shapes: reconstruction and attention."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from recon_ray.figures.canvas import QUIET_COLOR, TEXT_COLOR, new_figure, save_figure
from recon_ray.figures.panels import (
    INPUT_COLOR,
    MASKED_COLOR,
    OVERLAP_COLOR,
    PREDICTION_COLOR,
    VISIBLE_COLOR,
    Frame,
    Points,
    ValueScale,
    draw_points,
    draw_values,
    rgb,
    value_colormap,
    write_heading,
    write_row_title,
)
from recon_ray.figures.views import ShapeView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = npt.NDArray[np.float32]

PANEL_INCHES = 2.3  # of a shape's own figure
SMALL_INCHES = 1.6  # of the sheet with all shapes
HEADING_INCHES = 0.5  # above a row of panels with headings
BAR_INCHES = 0.35  # below a row of panels with color bars
TITLE_INCHES = 0.45
LETTERS_PER_INCH = 16  # of small text
ROW_LETTERS = 30  # of a name that fit beside a row of the sheet


@dataclass(frozen=True)
class Panel:
    """One panel of a shape.

    Attributes:
        heading: Lines above the panel.
        colors: Color of each line.
        groups: Points of one color each.
        values: Values of the points of the only group, which color them instead.
    """

    heading: str
    colors: tuple[str, ...]
    groups: tuple[tuple[Points, str], ...]
    values: Values | None = None


def panels_of(view: ShapeView) -> list[Panel]:
    """List the panels of a shape: the input, its reconstruction, the attention of each token."""
    panels = [Panel("input", (INPUT_COLOR,), ((view.points, INPUT_COLOR),))]
    made = view.reconstruction
    if made is not None:
        visible = (view.points[made.visible], VISIBLE_COLOR)
        masked = (view.points[made.masked & ~made.visible], MASKED_COLOR)
        overlap = (view.points[made.masked & made.visible], OVERLAP_COLOR)
        predicted = (made.prediction, PREDICTION_COLOR)
        panels += [
            Panel("visible patches", (VISIBLE_COLOR,), (visible,)),
            Panel(
                "masked patches\noverlap with visible ones",
                (MASKED_COLOR, OVERLAP_COLOR),
                (masked, overlap),
            ),
            Panel("reconstruction", (PREDICTION_COLOR,), (predicted,)),
            Panel(
                "visible patches\nreconstruction",
                (VISIBLE_COLOR, PREDICTION_COLOR),
                (visible, predicted),
            ),
        ]
    for token, values in view.attention.items():
        group = (view.points, INPUT_COLOR)
        panels.append(Panel(f"{token} token", (TEXT_COLOR,), (group,), values))
    return panels


def attention_scale(views: Iterable[ShapeView]) -> ValueScale:
    """Return the scale of color that the attention of all tokens in all shapes has in common."""
    return ValueScale.over(values for view in views for values in view.attention.values())


def shape_figure(view: ShapeView, path: Path | str, scale: ValueScale | None = None) -> Path:
    """Draw all panels of one shape, with a color bar below each picture of attention.

    Args:
        view: The shape.
        path: PNG file to write; its folder is made.
        scale: Scale of the attention; by default that of the shape.

    Returns:
        The path.

    Raises:
        OSError: If it cannot be written.
    """
    panels = panels_of(view)
    columns = len(panels) if len(panels) <= 5 else -(-len(panels) // 2)
    rows = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    grid = _Grid(columns * PANEL_INCHES, TITLE_INCHES + sum(map(_row_inches, rows)))
    _write_title(grid, view)
    frame = Frame.around(view.points, PANEL_INCHES)
    scale = scale or attention_scale([view])
    top = TITLE_INCHES
    for row in rows:
        for column, panel in enumerate(row):
            _draw_cell(grid, panel, scale, frame, column * PANEL_INCHES, top + HEADING_INCHES)
        top += _row_inches(row)
    return save_figure(grid.figure, path)


def _row_inches(row: Sequence[Panel]) -> float:
    has_bar = any(panel.values is not None for panel in row)
    return HEADING_INCHES + PANEL_INCHES + (BAR_INCHES if has_bar else 0)


def _draw_cell(
    grid: _Grid, panel: Panel, scale: ValueScale, frame: Frame, left: float, top: float
) -> None:
    """Draw a panel with its heading and color bar."""
    side = PANEL_INCHES
    axes = grid.axes(left, top, side, side)
    write_heading(axes, panel.heading, panel.colors)
    _draw_panel(axes, panel, scale, frame)
    if panel.values is not None:
        bar = grid.axes(left + 0.15 * side, top + side + 0.05, 0.7 * side, 0.07)
        _draw_bar(grid.figure, bar, scale.labels())


def sheet_figure(
    views: Sequence[ShapeView], path: Path | str, scale: ValueScale | None = None
) -> Path:
    """Draw all panels of several shapes, one row a shape.

    Every row has its own scale of space; all pictures of attention have one scale of color, whose
    ends are printed.

    Args:
        views: Shapes with the same panels.
        path: PNG file to write; its folder is made.
        scale: Scale of the attention; by default that of these shapes.

    Returns:
        The path.

    Raises:
        ValueError: If there is no shape.
        OSError: If it cannot be written.
    """
    if not views:
        raise ValueError("views is empty: give at least one shape.")
    scale = scale or attention_scale(views)
    side, margin = SMALL_INCHES, 0.45
    columns = len(panels_of(views[0]))
    has_bar = bool(views[0].attention)
    height = HEADING_INCHES + len(views) * side + (BAR_INCHES if has_bar else 0)
    grid = _Grid(margin + columns * side, height)
    for row, view in enumerate(views):
        frame = Frame.around(view.points, side)
        for column, panel in enumerate(panels_of(view)):
            top = HEADING_INCHES + row * side
            axes = grid.axes(margin + column * side, top, side, side)
            _draw_panel(axes, panel, scale, frame)
            if row == 0:
                write_heading(axes, panel.heading, panel.colors, 8)
            if column == 0:
                write_row_title(axes, _shortened(view.title), 8)
    if has_bar:
        count = len(views[0].attention)
        left = margin + (columns - count + 0.25) * side
        bar = grid.axes(left, height - 0.27, (count - 0.5) * side, 0.07)
        middle = {0.625: "attention (1 is an even share)"}
        _draw_bar(grid.figure, bar, scale.labels() | (middle if count > 1 else {}))
    return save_figure(grid.figure, path)


def clouds_of(
    view: ShapeView, scale: ValueScale | None = None
) -> dict[str, tuple[Points, npt.NDArray[np.uint8]]]:
    """Return colored clouds: kind to (n, 3) points and (n, 3) uint8 RGB.

    The kinds are ``input``; ``visible``, ``masked``, ``prediction`` and ``completed`` (visible and
    predicted points together); ``attention-<token>``, on a scale of color that is by default that
    of the shape.
    """
    scale = scale or attention_scale([view])
    clouds = {"input": _painted((view.points, INPUT_COLOR))}
    made = view.reconstruction
    if made is not None:
        visible = (view.points[made.visible], VISIBLE_COLOR)
        predicted = (made.prediction, PREDICTION_COLOR)
        clouds["visible"] = _painted(visible)
        clouds["masked"] = _painted((view.points[made.masked], MASKED_COLOR))
        clouds["prediction"] = _painted(predicted)
        clouds["completed"] = _painted(visible, predicted)
    for token, values in view.attention.items():
        clouds[f"attention-{token}"] = view.points, _bytes(scale.colors(values))
    return clouds


def write_clouds(view: ShapeView, folder: Path, scale: ValueScale | None = None) -> list[Path]:
    """Write the clouds of :func:`clouds_of` as ``<name>-<kind>.ply``.

    The files are binary: float32 coordinates, and RGBA as bytes.

    Raises:
        OSError: If one cannot be written.
    """
    from trimesh import PointCloud  # some tenths of a second

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, (points, colors) in clouds_of(view, scale).items():
        paths.append(folder / f"{view.name}-{kind}.ply")
        PointCloud(points, colors).export(paths[-1])
    return paths


def _painted(*groups: tuple[Points, str]) -> tuple[Points, npt.NDArray[np.uint8]]:
    colors = [np.tile(_bytes(rgb(color)), (len(group), 1)) for group, color in groups]
    return np.concatenate([group for group, _ in groups]), np.concatenate(colors)


def _bytes(colors: Values) -> npt.NDArray[np.uint8]:
    return np.round(colors * 255).astype(np.uint8)


class _Grid:
    """A figure whose axes are placed in inches from the upper left."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = new_figure(width, height)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        return self.figure.add_axes(
            (
                left / self.width,
                1 - (top + height) / self.height,
                width / self.width,
                height / self.height,
            )
        )


def _draw_panel(axes: Axes, panel: Panel, scale: ValueScale, frame: Frame) -> None:
    if panel.values is None:
        draw_points(axes, panel.groups, frame)
    else:
        draw_values(axes, panel.groups[0][0], panel.values, scale, frame)


def _draw_bar(figure: Figure, axes: Axes, labels: Mapping[float, str]) -> None:
    """Draw a color bar with labels at places from 0 to 1."""
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(cmap=value_colormap()), cax=axes, orientation="horizontal")
    bar.set_ticks(list(labels), labels=list(labels.values()))
    bar.ax.tick_params(colors=TEXT_COLOR, labelsize=7, length=0, pad=2)
    bar.outline.set_visible(False)


def _write_title(grid: _Grid, view: ShapeView) -> None:
    first, _, second = view.title.partition("\n")
    notes = [second] if second else []
    if view.reconstruction is not None:
        notes.append(f"reconstruction loss {view.reconstruction.loss:.4f}")
    if view.attention:
        notes.append("attention: 1 is the same for every patch")
    if any(np.isnan(values).any() for values in view.attention.values()):
        notes.append("palest points: in no patch")
    text = textwrap.fill(", ".join(notes), int(LETTERS_PER_INCH * grid.width))
    top, below = 1 - 0.1 / grid.height, 1 - 0.34 / grid.height
    left = 0.1 / grid.width
    grid.figure.text(left, top, first, va="top", fontsize=12, color=TEXT_COLOR)
    grid.figure.text(left, below, text, va="top", fontsize=8, color=QUIET_COLOR)


def _shortened(title: str) -> str:
    """Keep the last part of each line that is a path, and the end of one that is too long."""
    ends = [line.rsplit("/", 1)[-1] for line in title.split("\n")]
    return "\n".join(
        line if len(line) <= ROW_LETTERS else f"...{line[-ROW_LETTERS:]}" for line in ends
    )
