"""Reader of text files of numbers, a point a line."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from recon_ray.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def read_rows(path: Path, num_columns: int, *, delimiter: str | None = None) -> np.ndarray:
    """Read a file of numbers, separated by blanks or a delimiter, as (lines, num_columns) float64.

    Raises:
        DataError: If the file is missing or empty, or a line has another number of columns or a
            word in it; the message names the line.
    """
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        reason = "file not found" if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(f"{path}: {reason}") from error
    lines = text.splitlines()
    if not any(line.strip() for line in lines):
        raise DataError(f"{path}: the file is empty")
    with contextlib.suppress(ValueError):  # the message below names the line
        table = np.loadtxt(lines, dtype=np.float64, delimiter=delimiter, comments=None, ndmin=2)
        if table.shape[1] == num_columns:
            return table
    raise DataError(f"{path} {_first_bad_line(lines, num_columns, delimiter)}")


def _first_bad_line(lines: list[str], num_columns: int, delimiter: str | None) -> str:
    for number, line in enumerate(lines, 1):
        words = line.split(delimiter)
        if line.strip() and len(words) != num_columns:
            return f"line {number}: has {len(words)} columns instead of {num_columns}"
        wrong = next((word for word in words if line.strip() and not _is_number(word)), None)
        if wrong is not None:
            return f"line {number}: {wrong.strip()[:40]!r} is not a number"
    return "cannot be read as numbers"


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
