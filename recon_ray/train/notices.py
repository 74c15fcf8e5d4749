"""Word from outside that a run should commit, or commit and end: SIGTERM, or a node that leaves."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

logger = logging.getLogger(__name__)

_stop = threading.Event()


class Notice(IntEnum):
    """What the outside asks of a run; the larger one wins."""

    NONE = 0
    #: Commit at once, and go on as long as it lasts.
    COMMIT = 1
    #: Commit at once, and end.
    STOP = 2


def stop_requested() -> threading.Event:
    """Is set once this process has been asked to end."""
    return _stop


@contextmanager
def catching_sigterm() -> Iterator[None]:
    """Take the first SIGTERM as a request to commit and end; a second one ends at once.

    Only the main thread can; elsewhere, as in trials, SIGTERM keeps its meaning.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def ask(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        logger.warning("SIGTERM: the run commits and ends; a second one ends it at once")
        _stop.set()

    signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is ask:
            signal.signal(signal.SIGTERM, before)
        _stop.clear()
