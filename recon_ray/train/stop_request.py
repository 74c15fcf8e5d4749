"""Stop and checkpoint requests: SIGTERM, or a node that is drained."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

from recon_ray.errors import StoppedError

logger = logging.getLogger(__name__)

#: Seconds for the training loop to see a stop request: it looks between two steps, but not while it
#: waits for workers or evaluates.
ANSWER_SECONDS = 60.0

_stop = threading.Event()
_heard = threading.Event()


class StopRequest(IntEnum):
    """Request to a run; the larger one wins."""

    NONE = 0
    #: Commit at once, and go on.
    COMMIT = 1
    #: Commit at once, and end.
    STOP = 2


def stop_requested() -> threading.Event:
    """Return the event that is set once this process has received SIGTERM."""
    return _stop


def stop_heard() -> threading.Event:
    """Return the event that the training loop sets once it has seen the request."""
    return _heard


@contextmanager
def sigterm_as_stop_request() -> Iterator[None]:
    """Take the first SIGTERM as a request to commit and end; a second one ends at once.

    Where the training loop does not see it in time, the process ends as by Ctrl-C, and the run
    continues from the last commit. Only the main thread can catch signals; elsewhere, as in trials,
    SIGTERM keeps its meaning.

    Raises:
        StoppedError: If the training loop did not see it in time.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    ended, overdue = threading.Event(), threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def remind() -> None:
        if not (ended.wait(ANSWER_SECONDS) or _heard.is_set()):
            overdue.set()
            signal.pthread_kill(main, signal.SIGTERM)  # wakes it from what it waits for

    reminder = threading.Thread(target=remind, daemon=True, name="stop-reminder")

    def ask(number: int, frame: FrameType | None) -> None:
        if not _stop.is_set():
            logger.warning("SIGTERM: the run commits and ends; a second one ends it at once")
            _stop.set()
            reminder.start()
            return
        signal.signal(signal.SIGTERM, before)
        if not overdue.is_set():
            signal.raise_signal(signal.SIGTERM)
            return
        interrupted = signal.getsignal(signal.SIGINT)  # Ray Train's ends its workers
        if callable(interrupted):
            interrupted(signal.SIGINT, frame)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, ask)
    try:
        yield
    except KeyboardInterrupt:
        if not overdue.is_set():
            raise
        raise StoppedError(
            f"stopped by SIGTERM; the run did not get to a commit in {ANSWER_SECONDS:g} s, and "
            "the same command with the same run.name goes on from the last one"
        ) from None
    finally:
        ended.set()
        if signal.getsignal(signal.SIGTERM) is ask:
            signal.signal(signal.SIGTERM, before)
        _stop.clear()
        _heard.clear()
