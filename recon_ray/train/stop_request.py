"""Word from outside that a run should commit, or commit and end: SIGTERM, or a node that leaves."""

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

#: How long the training loop may take to hear of the wish to end: between two steps it does, but
#: not while it waits for workers or evaluates.
ANSWER_SECONDS = 60.0

_stop = threading.Event()
_heard = threading.Event()


class StopRequest(IntEnum):
    """What the outside asks of a run; the larger one wins."""

    NONE = 0
    #: Commit at once, and go on as long as it lasts.
    COMMIT = 1
    #: Commit at once, and end.
    STOP = 2


def stop_requested() -> threading.Event:
    """Is set once this process has been asked to end."""
    return _stop


def stop_heard() -> threading.Event:
    """Is to be set once the training loop knows of that: it then commits and ends by itself."""
    return _heard


@contextmanager
def sigterm_as_stop_request() -> Iterator[None]:
    """Take the first SIGTERM as a request to commit and end; a second one ends at once.

    Where the training loop does not hear of it in time, what runs here is ended as by Ctrl-C, and
    the last commit is what the run goes on from. Only the main thread can; elsewhere, as in trials,
    SIGTERM keeps its meaning.

    Raises:
        StoppedError: If the training loop did not hear of it in time.
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
