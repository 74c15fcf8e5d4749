"""Findings of the checks, and the table of all of them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Level = Literal["ok", "warning", "error"]
#: The worst first.
LEVELS: tuple[Level, ...] = ("error", "warning", "ok")
_FOUND_WIDTH = 60


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        check: Name of the check.
        level: ``error`` where a run would break, ``warning`` where it would be slow or at risk.
        found: State, in a few words.
        advice: Remedy; empty where none is needed.
        places: Where it was found (``driver``, nodes); filled in by :func:`gather`.
    """

    check: str
    level: Level
    found: str
    advice: str = ""
    places: tuple[str, ...] = ()


def gather(found: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """Join equal findings of several places, check by check, the worst of each first."""
    places: dict[Finding, tuple[str, ...]] = {}
    for place, findings in found.items():
        for finding in findings:
            places[finding] = (*places.get(finding, ()), place)
    order = list(dict.fromkeys(finding.check for finding in places))
    rows = [replace(finding, places=where) for finding, where in places.items()]
    return sorted(rows, key=lambda row: (order.index(row.check), LEVELS.index(row.level)))


def format_table(rows: Sequence[Finding], places: int) -> str:
    """Format the rows of :func:`gather` as a table for the terminal, the advice below each."""
    cells = [("check", "", "where", "found")]
    for row in rows:
        texts = (row.found, f"-> {row.advice}" if row.advice else "")
        lines = [line for text in texts for line in _wrap(text)] or [""]
        level = row.level if row.level == "ok" else row.level.upper()
        cells.append((row.check, level, _where(row.places, places), lines[0]))
        cells += [("", "", "", line) for line in lines[1:]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return "\n".join(lines)


def _wrap(text: str) -> list[str]:
    """Wrap a text; paths and options stay in one piece."""
    return textwrap.wrap(text, _FOUND_WIDTH, break_long_words=False, break_on_hyphens=False)


def _where(places: Sequence[str], total: int) -> str:
    if len(places) == total > 1:
        return f"all {total}"
    shown = ", ".join(places[:2])
    return shown + (f" and {len(places) - 2} more" if len(places) > 2 else "")
