"""Paths and URIs of object stores, and the file systems behind them.

A URI may hold options of its store, in the form of pyarrow and Ray:
``s3://bucket/runs?endpoint_override=http://10.0.0.5:9000``. Places below it keep them.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs as pafs

from recon_ray.errors import ConfigError

#: Beginning of the names of unfinished files, followed by the number of the writing process.
TEMPORARY = ".tmp-"
#: Object stores, in which a file appears when it is whole, and whose paths begin with the bucket.
CONNECTED = ("s3", "gs", "gcs")
#: Option of pyarrow by which a small file is written to S3 by one request instead of three.
ONE_REQUEST = "allow_delayed_open=true"
#: Stores of this process alone, by the kind of their URIs; see :func:`serving`.
_SERVED: dict[str, pafs.FileSystem] = {}


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

    Kinds that pyarrow does not know (``az://``, ``memory://``) are opened by fsspec, if the package
    of that kind is installed.

    Raises:
        OSError: If the file system cannot be reached.
        ValueError: If the kind of URI is unknown.
    """
    if not is_uri(place):
        return pafs.LocalFileSystem(), str(Path(place).absolute())
    head, _, query = _cut(place)
    kind, _, path = head.partition("://")
    if kind in _SERVED:
        return _SERVED[kind], path.rstrip("/")
    if kind in CONNECTED:
        options = query if kind != "s3" else "&".join(filter(None, [query, ONE_REQUEST]))
        bucket = f"{kind}://{path.partition('/')[0]}?{options}".rstrip("?")
        return _connected(bucket), path.rstrip("/")
    try:
        return pafs.FileSystem.from_uri(place)
    except pa.ArrowInvalid as unknown:
        from fsspec.core import url_to_fs

        try:
            filesystem, path = url_to_fs(place)
        except (ImportError, ValueError) as error:
            raise pa.ArrowInvalid(str(error)) from unknown  # a ValueError
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


@contextmanager
def serving(kind: str, filesystem: pafs.FileSystem) -> Iterator[None]:
    """Let URIs of a kind name places in a store of this process, to count what it is asked for."""
    _SERVED[kind] = filesystem
    try:
        yield
    finally:
        del _SERVED[kind]


@lru_cache(maxsize=64)
def _connected(bucket: str) -> pafs.FileSystem:
    """Return the file system of a bucket; all places in it share its connections."""
    return pafs.FileSystem.from_uri(bucket)[0]


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


@dataclass(frozen=True, order=True)
class Place:
    """A file or folder on a disk or in an object store; small, hashable and picklable.

    What cannot work with an object store asks for the path on a disk (``open(place)``,
    ``Path(place)``), which is refused for a URI.

    Attributes:
        uri: Absolute path, or URI.
    """

    uri: str

    @classmethod
    def of(cls, place: str | os.PathLike[str] | Place) -> Place:
        """Return the place of a path, which holds in every process, or of a URI.

        Raises:
            ConfigError: If it is a URI that has lost a slash, as ``Path("s3://bucket/set")`` has.
        """
        if isinstance(place, Place):
            return place
        text = os.fspath(place)
        if re.match(r"[a-z][a-z0-9+.-]+:/(?!/)", text):
            raise ConfigError(
                f"{text}: this looks like a URI with a slash too few; give it as text, not as a "
                "Path, with two slashes"
            )
        return cls(absolute(text))

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> Place:
        return Place(join(self.uri, name))

    def __fspath__(self) -> str:
        if is_uri(self.uri):
            raise ConfigError(f"{self.uri}: this works on a disk only; give a path")
        return self.uri

    @property
    def is_local(self) -> bool:
        """Return whether it is a path."""
        return not is_uri(self.uri)

    @property
    def name(self) -> str:
        """Last part of its name."""
        return split(self.uri)[1]

    @property
    def parent(self) -> Place:
        """The folder that it lies in."""
        return Place(split(self.uri)[0])

    def below(self, root: Place) -> str:
        """Return its name below a folder."""
        return _cut(self.uri)[0].removeprefix(_cut(root.uri)[0].rstrip("/") + "/")

    def is_file(self) -> bool:
        """Return whether there is a file."""
        return self._type() == pafs.FileType.File

    def is_dir(self) -> bool:
        """Return whether there is a folder, or files below it in a store without folders."""
        return self._type() == pafs.FileType.Directory

    def exists(self) -> bool:
        """Return whether there is a file or folder."""
        return self._type() != pafs.FileType.NotFound

    def _type(self) -> pafs.FileType:
        with _reaching(self):
            filesystem, path = open_filesystem(self.uri)
            return filesystem.get_file_info(path).type

    def files(self) -> dict[str, int]:
        """Return all files below a folder by their names below it, with their bytes: one listing.

        A folder that does not exist has none.

        Raises:
            ConfigError: If the file system does not answer.
        """
        with _reaching(self):
            filesystem, path = open_filesystem(self.uri)
            selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
            found = filesystem.get_file_info(selector)
        start = len(path.strip("/")) + 1
        return {
            info.path.lstrip("/")[start:]: info.size
            for info in found
            if info.type == pafs.FileType.File
        }

    def folders(self) -> list[Place]:
        """Return the folders in a folder, sorted; one that does not exist has none.

        Raises:
            ConfigError: If the file system does not answer.
        """
        with _reaching(self):
            filesystem, path = open_filesystem(self.uri)
            found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return sorted(self / i.base_name for i in found if i.type == pafs.FileType.Directory)

    def read_bytes(self) -> bytes:
        """Read a file whole, in one piece.

        Raises:
            OSError: If it is missing or the file system does not answer.
        """
        if self.is_local:
            return Path(self.uri).read_bytes()
        with self.open() as file:
            return bytes(file.read())

    def open(self) -> pa.NativeFile:
        """Open a file for reading at any place in it.

        Raises:
            OSError: If it is missing or the file system does not answer.
        """
        filesystem, path = open_filesystem(self.uri)
        return filesystem.open_input_file(path)

    def write_bytes(self, content: bytes | memoryview) -> None:
        """Write a file, which is either whole or absent.

        Raises:
            OSError: If the disk is full or the file system refuses.
        """
        filesystem, path = open_filesystem(self.uri)
        appears_whole = self.uri.partition("://")[0] in {*CONNECTED, *_SERVED}
        # Not named *.parquet: the leftover of a killed process must not look like a shard.
        folder, name = str(PurePosixPath(path).parent), PurePosixPath(path).name
        partial = path if appears_whole else f"{folder}/{TEMPORARY}{os.getpid()}-{name}.partial"
        if not appears_whole:
            filesystem.create_dir(folder, recursive=True)
        try:
            if self.is_local:
                with Path(partial).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                Path(partial).replace(path)
                return
            with filesystem.open_output_stream(partial) as stream:
                stream.write(content)
            if partial != path:
                filesystem.move(partial, path)
        except BaseException:  # Ctrl-C too
            if partial != path:
                with suppress(OSError):
                    filesystem.delete_file(partial)
            raise

    def unlink(self) -> None:
        """Delete a file, if it exists."""
        filesystem, path = open_filesystem(self.uri)
        with suppress(FileNotFoundError):
            filesystem.delete_file(path)


def unreachable(place: Place, error: Exception) -> ConfigError:
    """Return the sentence for a store or disk that does not answer as it should."""
    return ConfigError(
        f"{place}: cannot be reached ({reason_of(error)}); check the address, the bucket and the "
        "credentials in the environment"
    )


@contextmanager
def _reaching(place: Place) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise unreachable(place, error) from error


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
