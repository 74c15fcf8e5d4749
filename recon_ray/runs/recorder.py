"""Records of a run: ``metrics.jsonl``, TensorBoard and the listeners of this process.

On an object store both go on in a new file from time to time, as what has grown is sent again.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from recon_ray.errors import CheckpointError
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.journal import RECORDS
from recon_ray.runs.jsonl import cut_end, read_lines

logger = logging.getLogger(__name__)

#: Called with the step, the epoch and the values of a record.
Listener = Callable[[int, int, Mapping[str, float]], None]
_listeners: list[Listener] = []
#: Records in a file of TensorBoard's on an object store.
RECORDS_A_FILE = 500


@contextmanager
def recording_to(listener: Listener) -> Iterator[None]:
    """Call a function with every record that this process writes meanwhile, after it is written.

    A sweep passes the records on to the scheduler of its trials.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def read_records(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the records of a run's ``metrics.jsonl``, without half written or damaged ones.

    Raises:
        CheckpointError: If it cannot be read.
    """
    return read_lines(folder.read(RECORDS, errors="replace") or "", key="step")


class Recorder:
    """Writes the metrics of a run to its folder; on rank 0 only.

    A record that cannot be written does not raise, as the other ranks would wait for this one: it
    is noted in :attr:`failure`, which the next commit passes to all of them. TensorBoard's writer
    has a thread of its own, which prints a traceback besides.

    Args:
        folder: The run's folder.
        start_step: Step from which the run continues; later records of an earlier attempt go, and
            all of them if it starts anew.
        extends_last: Whether the next record covers the steps of one at ``start_step`` too, with
            which an earlier attempt ended; that one goes.
    """

    def __init__(self, folder: RunFolder, *, start_step: int, extends_last: bool = False) -> None:
        self.failure = ""
        self._folder = folder
        self._path = folder.local / RECORDS
        self._board: SummaryWriter | None = None
        self._in_file = 0
        with self._noting():
            self._keep_until(start_step, ended=start_step if extends_last else None)
            self._open_board(purge_step=start_step + 1)

    def _open_board(self, purge_step: int | None = None) -> None:
        place = str(self._folder.local / "tensorboard")
        self._board, self._in_file = SummaryWriter(place, purge_step=purge_step), 0

    def write(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Add one record of named metrics (``train/loss``); values not finite become null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        record = {"step": step, "epoch": epoch, **finite}
        with self._noting():
            with self._path.open("a") as stream:
                stream.write(json.dumps(record) + "\n")
            if self._board is not None:
                if self._in_file >= RECORDS_A_FILE and not self._folder.is_local:
                    self._board.close()
                    self._open_board()
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)
                self._board.flush()
                self._in_file += 1
        for listener in tuple(_listeners):
            listener(step, epoch, values)

    def close(self) -> None:
        """Close the files."""
        with self._noting():
            if self._board is not None:
                self._board.close()

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except CheckpointError as error:
            self.failure = self.failure or str(error)
        except OSError as error:
            self.failure = self.failure or (
                f"{self._path}: the metrics could not be written ({error.strerror or error}); free "
                "space there, then start the same run again: it continues from the last checkpoint"
            )

    def _keep_until(self, step: int, *, ended: int | None) -> None:
        if step == 0:  # no checkpoint: the evaluation at step 0 comes again too
            self._folder.remove(RECORDS)
            self._path.unlink(missing_ok=True)

        def is_before(record: Mapping[str, Any]) -> bool:
            return bool(record["step"] < step)

        def keeps(line: str) -> bool:
            is_last = any(r["step"] == ended for r in read_lines(line, key="train/loss"))
            return not is_last and any(r["step"] <= step for r in read_lines(line, key="step"))

        def reaches(content: bytes) -> bool:
            return any(map(is_before, read_lines(content.decode(errors="replace"), key="step")))

        self._folder.fetch(RECORDS, reaches)
        if self._path.exists():
            cut_end(self._path, keeps, is_before, key="step")
