"""Colors and style of all figures, and a canvas that needs no display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
TEXT_COLOR = "#30343b"
QUIET_COLOR = "#8b919b"
GRID_COLOR = "#e6e8ec"
SERIES_COLORS = ("#2f6db5", "#e0762f", "#3a9a6d", "#a0529f", "#8a7a33", "#c2405a", "#48566b")


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of its own, without pyplot: no display, no global state, safe in threads.

    Args:
        width: In inches.
        height: In inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path | str) -> Path:
    """Write a figure as PNG; its folder is made.

    Returns:
        The path.

    Raises:
        OSError: If it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def style_axes(axes: Axes, title: str) -> None:
    """Style a chart: gray frame, small text, title on the left."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(QUIET_COLOR)
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT_COLOR, labelsize=9)
    axes.set_title(title, color=TEXT_COLOR, fontsize=11, loc="left")
