"""JSON lines of processes that may have been killed while they wrote."""

from __future__ import annotations

import json
from typing import Any


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
