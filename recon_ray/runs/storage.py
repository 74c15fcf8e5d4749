"""Paths and URIs of object stores, and the file systems behind them.

A URI may hold options of its store, in the form of pyarrow and Ray:
``s3://bucket/runs?endpoint_override=http://10.0.0.5:9000``. Places below it keep them.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pyarrow import fs as pafs


def is_uri(place: str) -> bool:
    """Return whether a place is a URI rather than a path."""
    return "://" in place


def absolute(place: str) -> str:
    """Return the name of a place that holds in every process."""
    return place if is_uri(place) else str(Path(place).absolute())


def join(place: str, *names: str) -> str:
    """Return a file or folder below a place: a path of a path, a URI of a URI."""
    head, mark, query = _cut(place)
    return "/".join([head.rstrip("/"), *names]) + mark + query


def split(place: str) -> tuple[str, str]:
    """Return the place above another one, and the last part of its name."""
    head, mark, query = _cut(place)
    parent, _, name = head.rstrip("/").rpartition("/")
    return parent + mark + query, name


def open_filesystem(place: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system and the path inside it of a folder or URI.

    Raises:
        OSError: If the file system cannot be reached.
        ValueError: If the kind of URI is unknown.
    """
    if is_uri(place):
        filesystem, path = pafs.FileSystem.from_uri(place)
        return filesystem, path
    return pafs.LocalFileSystem(), str(Path(place).absolute())


def _cut(place: str) -> tuple[str, str, str]:
    return place.partition("?") if is_uri(place) else (place, "", "")


def exists(filesystem: pafs.FileSystem, path: str) -> bool:
    """Return whether there is a file or folder."""
    return filesystem.get_file_info(path).type != pafs.FileType.NotFound


def read_bytes(filesystem: pafs.FileSystem, path: str) -> bytes | None:
    """Return the content of a file, None for a missing one.

    Raises:
        OSError: If the file system does not answer.
    """
    if not exists(filesystem, path):
        return None
    try:
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())
    except FileNotFoundError:  # deleted just now
        return None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside a local file, which is renamed to it in the end.

    Raises:
        OSError: If that fails; an earlier file stays.
    """
    partial = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        yield partial
        partial.replace(path)
    except BaseException:  # Ctrl-C too leaves no half file
        with suppress(OSError):
            partial.unlink()
        raise


def replace_file(path: Path, text: str) -> None:
    """Write a local file in one step; see :func:`replacing`."""
    with replacing(path) as partial:
        partial.write_text(text)


logger = logging.getLogger(__name__)

#: Waits between the attempts at an object store.
RETRY_SECONDS = (1.0, 4.0)

T = TypeVar("T")


def reason_of(error: Exception) -> str:
    """Return the reason in an error of a file system, without the path."""
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def with_retries(attempt: Callable[[], T]) -> T:
    """Call a function that uses an object store; repeat it after a while if the store fails.

    Args:
        attempt: The function, which may run several times, each time from the beginning.

    Raises:
        OSError: That of the last attempt; a missing file is raised at once.
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
