"""Folders and URIs of object stores: how their names are put together, and what opens them.

A URI may say how its store is reached, as pyarrow and Ray take it:
``s3://bucket/runs?endpoint_override=http://10.0.0.5:9000``. What is below it keeps that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pyarrow import fs as pafs


def is_uri(place: str) -> bool:
    """Return whether a place is a URI rather than a path."""
    return "://" in place


def absolute(place: str) -> str:
    """The place by the name under which every process finds it."""
    return place if is_uri(place) else str(Path(place).absolute())


def join(place: str, *names: str) -> str:
    """A file or folder below a place, which stays a path or a URI as it is."""
    head, mark, query = _cut(place)
    return "/".join([head.rstrip("/"), *names]) + mark + query


def split(place: str) -> tuple[str, str]:
    """The place above another one, and the last part of its name."""
    head, mark, query = _cut(place)
    parent, _, name = head.rstrip("/").rpartition("/")
    return parent + mark + query, name


def open_filesystem(place: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system and the path inside it of a folder or URI.

    Raises:
        OSError: If the file system cannot be reached.
        ValueError: If there is no such kind of URI.
    """
    if is_uri(place):
        filesystem, path = pafs.FileSystem.from_uri(place)
        return filesystem, path
    return pafs.LocalFileSystem(), str(Path(place).absolute())


def _cut(place: str) -> tuple[str, str, str]:
    return place.partition("?") if is_uri(place) else (place, "", "")


logger = logging.getLogger(__name__)

#: Waits between the attempts at an object store.
RETRY_SECONDS = (1.0, 4.0)

T = TypeVar("T")


def reason_of(error: OSError | ValueError) -> str:
    """Return the reason in an error of a file system, without the path."""
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def with_retries(attempt: Callable[[], T]) -> T:
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
