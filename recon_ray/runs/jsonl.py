"""JSON lines of processes that may have been killed while they wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Bytes at the end of a file that are read first.
END_BYTES = 1 << 19


def read_lines(text: str, *, key: str) -> list[dict[str, Any]]:
    """Return the records of a text that have a key, without half written or damaged lines."""
    records = []
    for line in text.split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and key in record:
            records.append(record)
    return records


def read_end(path: Path) -> str:
    """Return the lines in the last :data:`END_BYTES` of a file, empty for a missing one.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - END_BYTES))
            content = stream.read()
    except FileNotFoundError:
        return ""
    return (content if size <= END_BYTES else content.partition(b"\n")[2]).decode(errors="replace")


def cut_end(
    path: Path, keeps: Callable[[str], bool], reaches: Callable[[dict[str, Any]], bool], *, key: str
) -> None:
    """Keep some of the lines at the end of a file, which is not read from its beginning.

    Args:
        path: The file; it is changed in place.
        keeps: Whether a line stays.
        reaches: Whether all lines before a record stay.
        key: Key of the records.

    Raises:
        OSError: If it cannot be read or written.
    """
    with path.open("rb+") as stream:
        size, count = stream.seek(0, os.SEEK_END), END_BYTES
        while True:
            start = stream.seek(max(0, size - count))
            end = stream.read()
            if start:  # in the midst of a line
                start += end.index(b"\n") + 1 if b"\n" in end else len(end)
                end = end.partition(b"\n")[2]
            if not start or any(map(reaches, read_lines(end.decode(errors="replace"), key=key))):
                break
            count *= 4
        lines = end.splitlines()
        kept = b"".join(x + b"\n" for x in lines if keeps(x.decode(errors="replace")))
        if kept != end:
            stream.seek(start)
            stream.write(kept)
            stream.truncate()
