"""Trying again where a storage does not answer for a moment."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

#: Waits between the attempts at an object store.
RETRY_SECONDS = (1.0, 4.0)

T = TypeVar("T")


def patiently(attempt: Callable[[], T]) -> T:
    """Do something with an object store; where it does not answer, again after a while.

    Args:
        attempt: What is done; it may be done several times, and from the beginning each time.

    Raises:
        OSError: That of the last attempt. A file that is not there is not waited for.
    """
    for seconds in RETRY_SECONDS:
        try:
            return attempt()
        except FileNotFoundError:
            raise
        except OSError as error:
            logger.warning("%s; trying again in %g s", str(error).split("\n")[0], seconds)
            time.sleep(seconds)
    return attempt()
