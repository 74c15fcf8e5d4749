"""TensorBoard's event file, written in the caller's thread.

The library's own writer has a thread; what goes wrong there, a full disk for example, would end as
a traceback on the terminal and be noticed one record late.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter

VERSION = "brain.Event:2"  # every event file begins with it


class EventFile:
    """A new event file in a folder; earlier ones stay beside it.

    Args:
        folder: Folder that TensorBoard is pointed at; made if needed.
        purge_step: TensorBoard forgets what earlier files hold from this step on.

    Raises:
        OSError: If the file cannot be written; so do the methods.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / f"{name}.{uuid.uuid4().hex[:8]}").open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version=VERSION))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=purge_step, file_version=VERSION))
            self._write(Event(step=purge_step, session_log=start))

    def add(self, summary: Any, step: int) -> None:  # noqa: ANN401 - a generated protocol class
        """Write one summary, such as ``torch.utils.tensorboard.summary.scalar`` makes."""
        self._write(Event(summary=summary, step=step))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Any) -> None:  # noqa: ANN401 - a generated protocol class
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()
