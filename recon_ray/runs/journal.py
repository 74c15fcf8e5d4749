"""Journal ``events.jsonl`` of a run: every start, restart and change of the workers, and why."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from recon_ray.errors import CheckpointError
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.jsonl import read_lines

FILE, RECORDS = "events.jsonl", "metrics.jsonl"
#: Texts of gloo and NCCL in a worker whose peer is gone.
LOST_CONNECTION = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError",
)  # fmt: skip
#: Characters that a failure's text is cut to.
LONGEST = 300


class Journal:
    """The events of a run; one process adds to them at a time."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the events so far, of one kind or all; none where they cannot be read."""
        try:
            text = self._folder.read(FILE, errors="replace") or ""
        except CheckpointError:
            return []
        return _of_kind(text, kind)

    def recent(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the newest of the events, some thousands, by reading the end of the journal."""
        try:
            return _of_kind(self._folder.read_end(FILE), kind)
        except CheckpointError:
            return []

    def add(self, event: str, **values: Any) -> None:  # noqa: ANN401 - plain data
        """Add one event, with the time in seconds since 1970; leave it out if that fails.

        Args:
            event: ``submitted``, ``trains``, ``failed``, ``notice``, ``stopped`` or ``done``.
            values: Its further fields.
        """
        line = json.dumps({"time": round(time.time(), 3), "event": event, **values}) + "\n"
        with suppress(CheckpointError):  # a full disk; the next commit reports it
            self._folder.append(FILE, line)


def _of_kind(text: str, kind: str | None) -> list[dict[str, Any]]:
    found = read_lines(text, key="event")
    return [event for event in found if kind in (None, event["event"])]


@dataclass(frozen=True)
class Restart:
    """Reason and cost of a restart.

    Attributes:
        reason: Why it did not go on as before.
        workers_before: Workers before.
        idle_since: Time of the last record, in seconds since 1970; None where it is not known.
        repeated: Steps that were done already and are done again.
    """

    reason: str
    workers_before: int
    idle_since: float | None
    repeated: int

    def describe(self, workers: int) -> str:
        """Return a line for the log, once the first step is done."""
        plural = "worker" if workers == 1 else "workers"
        changed = self.workers_before != workers
        who = f"{workers} {plural}" + (f" instead of {self.workers_before}" if changed else "")
        idle = None if self.idle_since is None else time.time() - self.idle_since
        gap = "" if idle is None else f", {idle:.0f} s after the last record"
        again = f", {self.repeated} steps are done again" if self.repeated else ""
        return f"training on {who}{gap}{again} ({self.reason})"


def explain_restart(
    events: Sequence[Mapping[str, Any]],
    *,
    attempt: str,
    step: int,
    last_step: int,
    idle_since: float | None,
) -> Restart | None:
    """Return why a run trains again, from its journal.

    Args:
        events: The events so far.
        attempt: Name of this submission of the job.
        step: Step from which it goes on.
        last_step: Last step that has a record.
        idle_since: Time of that record, None where it is not known.

    Returns:
        None at the first start.
    """
    starts = [i for i, event in enumerate(events) if event["event"] == "trains"]
    if not starts:
        return None
    last = events[starts[-1]]
    since = events[starts[-1] + 1 :]
    repeated = max(last_step - step, 0)
    return Restart(_reason(last, since, attempt), int(last["workers"]), idle_since, repeated)


def last_record(folder: RunFolder) -> tuple[int, float | None]:
    """Return the step of a run's last record and when it was written, before the run goes on."""
    try:
        records = read_lines(folder.read_end(RECORDS), key="step")
        written = (folder.local / RECORDS).stat().st_mtime if folder.is_local else None
    except (OSError, CheckpointError):
        return 0, None
    return (int(records[-1]["step"]) if records else 0), written


def _reason(last: Mapping[str, Any], since: Sequence[Mapping[str, Any]], attempt: str) -> str:
    kinds = {event["event"]: event for event in since}
    if "stopped" in kinds:
        return f"it was stopped, {kinds['stopped'].get('reason', 'on request')}"
    if last.get("attempt") != attempt:
        done = "done" in kinds
        return "it had ended, and has more to do" if done else "the job was submitted again"
    if "notice" in kinds:
        return f"{kinds['notice'].get('reason', 'a node was announced to leave')}"
    if "failed" in kinds:
        return f"a worker failed: {kinds['failed'].get('reason', 'unknown')}"
    return "the cluster has other resources"


def shortened(reason: str) -> str:
    """Return the last line of an error, which may be a whole traceback, cut to a length."""
    lines = [line.strip() for line in reason.strip().splitlines() if line.strip()]
    text = lines[-1] if lines else "no message"
    if any(words in text for words in LOST_CONNECTION):
        return "it lost the connection to another worker"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
