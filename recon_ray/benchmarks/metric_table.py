"""Tables of metrics for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


def metric_table(
    metrics: Mapping[str, float],
    names: Sequence[str],
    columns: Mapping[str, tuple[str, Callable[[float], str]]],
) -> list[str]:
    """Format a heading and a line for each name.

    Args:
        metrics: Values by name.
        names: Rows; the keys of their metrics begin with it.
        columns: Heading to the rest of the key and to the format of the value; ``-`` stands for
            metrics that are missing.
    """
    rows = [["", *columns]]
    for name in names:
        row = [name.rstrip("/_")]
        for key, text in columns.values():
            row.append(text(metrics[name + key]) if name + key in metrics else "-")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])])
        for first, *rest in rows
    ]
