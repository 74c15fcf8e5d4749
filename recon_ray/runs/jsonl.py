"""Files of JSON lines, to which a process may have been adding when it was killed."""

from __future__ import annotations

import json
from typing import Any


def read_lines(text: str, *, key: str) -> list[dict[str, Any]]:
    """Return the records of a file, without the lines that are half written or damaged.

    Args:
        text: Content of the file.
        key: What every record has.
    """
    records = []
    for line in text.split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and key in record:
            records.append(record)
    return records
