"""One thing that was looked at, and the table of all of them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]
#: The worst first.
LEVELS: tuple[Level, ...] = ("error", "warning", "ok")
_FOUND_WIDTH = 60


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        check: Name of the check.
        level: ``error`` where a run would break, ``warning`` where it would suffer.
        found: What is there, in a few words.
        advice: What to do about it; empty where nothing has to be done.
    """

    check: str
    level: Level
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Row:
    """A finding and the places that share it."""

    finding: Finding
    places: tuple[str, ...]

    def record(self) -> dict[str, object]:
        """The row as plain data, for ``result.json``."""
        return {**asdict(self.finding), "places": list(self.places)}


def gather(found: Mapping[str, Sequence[Finding]]) -> list[Row]:
    """Put equal findings of several places together, check by check, the worst of each first.

    Args:
        found: Place (``driver``, a node) to its findings, in the order of the checks.
    """
    places: dict[Finding, list[str]] = {}
    for place, findings in found.items():
        for finding in findings:
            places.setdefault(finding, []).append(place)
    order = {check: i for i, check in enumerate(dict.fromkeys(f.check for f in places))}
    rows = [Row(finding, tuple(where)) for finding, where in places.items()]
    return sorted(rows, key=lambda r: (order[r.finding.check], LEVELS.index(r.finding.level)))


def count(rows: Sequence[Row], level: Level) -> int:
    """How many rows have a level."""
    return sum(row.finding.level == level for row in rows)


def format_table(rows: Sequence[Row], places: int) -> str:
    """The rows as a table for the terminal, with the advice below what it is about.

    Args:
        rows: What :func:`gather` gave.
        places: How many places were looked at; rows of all of them say so.
    """
    where = [_where(row.places, places) for row in rows]
    checks = max(len("check"), *(len(row.finding.check) for row in rows))
    width = max(len("where"), *(len(text) for text in where))
    lines = [f"{'check':{checks}}  {'':7}  {'where':{width}}  found"]
    for row, text in zip(rows, where, strict=True):
        found = _wrapped(row.finding.found) or [""]
        level = "ok" if row.finding.level == "ok" else row.finding.level.upper()
        lines.append(f"{row.finding.check:{checks}}  {level:7}  {text:{width}}  {found[0]}")
        advice = _wrapped(f"-> {row.finding.advice}")
        beside = [*found[1:], *(advice if row.finding.advice else [])]
        lines += [f"{'':{checks}}  {'':7}  {'':{width}}  {line}" for line in beside]
    return "\n".join(line.rstrip() for line in lines)


def _wrapped(text: str) -> list[str]:
    """Lines of a text, with paths and options left in one piece."""
    return textwrap.wrap(text, _FOUND_WIDTH, break_long_words=False, break_on_hyphens=False)


def _where(places: Sequence[str], total: int) -> str:
    if len(places) == total > 1:
        return f"all {total}"
    shown = ", ".join(places[:2])
    return shown + (f" and {len(places) - 2} more" if len(places) > 2 else "")
