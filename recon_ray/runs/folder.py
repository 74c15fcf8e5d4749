"""The folder of a run, on a local disk or in an object store."""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pyarrow import fs as pafs

from recon_ray.errors import CheckpointError
from recon_ray.runs.jsonl import read_end
from recon_ray.runs.segments import (
    GrowingFile,
    line_after,
    list_segments,
    read_segment,
    read_segments,
    segment,
)
from recon_ray.storage import (
    absolute,
    join,
    open_filesystem,
    read_bytes,
    reason_of,
    replacing,
    with_retries,
)

#: Advice for a run whose own files are damaged.
START_FRESH_HINT = "choose another run.name, or resume=never to set this run aside"


class RunFolder:
    """The folder of one run, on a local disk or in an object store.

    Files are written below :attr:`local`; :meth:`publish` sends what has changed to the URI where
    that is another place. Nothing is made before the first file is written.

    Args:
        uri: ``<storage>/<run name>``.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._fs, self._root = open_filesystem(uri)
        self.is_local = isinstance(self._fs, pafs.LocalFileSystem)
        # Removed when the folder's object goes.
        self._copy = None if self.is_local else tempfile.TemporaryDirectory(prefix="recon-")
        self.local = Path(self._root) if self._copy is None else Path(self._copy.name)
        self._publishing = threading.Lock()
        self._growing: dict[str, GrowingFile] = {}
        self._sent: dict[str, tuple[int, ...]] = {}  # the state of the files that were sent

    def __reduce__(self) -> tuple[type[RunFolder], tuple[str]]:
        """Open the same folder in another process."""
        return RunFolder, (self.place,)

    @property
    def checkpoints(self) -> str:
        """Return the folder or URI of the run's checkpoints."""
        return join(self.uri, "checkpoints")

    @property
    def place(self) -> str:
        """Return the URI, or the absolute path, by which other processes find it."""
        return absolute(self.uri)

    def read(self, name: str, *, errors: Literal["strict", "replace"] = "strict") -> str | None:
        """Return the text of a file of the run, or None.

        Args:
            name: The file.
            errors: How to decode bytes that are not UTF-8, in a damaged file.

        Raises:
            CheckpointError: If it cannot be read.
        """
        content = self._content(name)
        try:
            return None if content is None else content.decode(errors=errors)
        except UnicodeDecodeError as error:
            raise self._unreadable(f"{self._root}/{name}", error) from error

    def _content(self, name: str) -> bytes | None:
        path = f"{self._root}/{name}"
        try:
            return (read_bytes if self.is_local else read_segments)(self._fs, path)
        except OSError as error:
            raise self._unreadable(path, error) from error

    def read_end(self, name: str) -> str:
        """Return the newest lines of a growing file, some hundred kilobytes of them.

        Raises:
            CheckpointError: If it cannot be read.
        """
        path = f"{self._root}/{name}"
        try:
            if self.is_local:
                return read_end(Path(path))
            parts = list_segments(self._fs, path)[-2:]
            content = b"".join(read_segment(self._fs, path, n) or b"" for n in parts)
        except OSError as error:
            raise self._unreadable(path, error) from error
        return content.decode(errors="replace")

    def write(self, name: str, text: str) -> Path:
        """Write a file in one step (temporary name, then rename).

        Raises:
            CheckpointError: If the storage refuses, a full disk for example.
        """
        with self.writing(name) as partial:
            partial.write_text(text)
        return self.local / name

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a temporary place for a file, which is there under its name in the end.

        Raises:
            CheckpointError: If the storage refuses.
        """
        path = self.local / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                yield partial
        except OSError as error:
            raise self._refused(path, error) from error
        self.publish()

    def append(self, name: str, text: str) -> None:
        """Append lines to a file that several processes write, one after the other.

        Raises:
            CheckpointError: If the storage refuses.
        """
        path = f"{self._root}/{name}"
        try:
            if self.is_local:
                with Path(path).open("ab+") as stream:
                    stream.seek(max(stream.seek(0, os.SEEK_END) - 1, 0))
                    stream.write(line_after(stream.read()) + text.encode())
                return
            # No local copy: publishing that of one process would undo what others have added.
            GrowingFile(self._fs, path).append(text.encode())
        except OSError as error:
            raise self._refused(path, error) from error

    def publish(self) -> None:
        """Send what is new since the last time to the object store, if the run lies on one.

        Raises:
            CheckpointError: If the storage refuses.
        """
        if self.is_local:
            return
        try:
            with self._publishing:
                for path in sorted(self.local.rglob("*")):
                    if path.is_file() and not path.name.startswith(".tmp-"):
                        self._send(path, path.relative_to(self.local).as_posix())
        except OSError as error:
            raise self._refused(self.uri, error) from error

    def _send(self, path: Path, name: str) -> None:
        state = path.stat()
        mark = state.st_ino, state.st_size, state.st_mtime_ns
        if self._sent.get(name) == mark:
            return
        target = f"{self._root}/{name}"
        folder = target.rpartition("/")[0]
        if not any(f"{self._root}/{sent}".rpartition("/")[0] == folder for sent in self._sent):
            with_retries(lambda: self._fs.create_dir(folder, recursive=True))
        if name in self._growing:
            self._growing[name].send(path)
        else:
            local = pafs.LocalFileSystem()
            with_retries(lambda: pafs.copy_files(str(path), target, local, self._fs))
        self._sent[name] = mark

    def fetch(self, name: str, reaches: Callable[[bytes], bool] = bool) -> None:
        """Copy the end of a growing file of an earlier attempt from the object store.

        What is appended to the local copy is sent by :meth:`publish` in segments.

        Args:
            name: The file.
            reaches: Whether its content from some place on is enough; by default that of the last
                segment.

        Raises:
            CheckpointError: If it cannot be read.
        """
        if self.is_local:
            return
        path = f"{self._root}/{name}"
        self._growing[name] = growing = GrowingFile(self._fs, path)
        try:
            content = growing.fetch(reaches)
        except OSError as error:
            raise self._unreadable(path, error) from error
        if content:
            self.local.joinpath(name).write_bytes(content)

    def remove(self, name: str) -> None:
        """Delete a file or folder of the run, if it is there.

        Raises:
            CheckpointError: If the storage refuses.
        """
        path = f"{self._root}/{name}"
        try:
            kind = self._fs.get_file_info(path).type
            if kind == pafs.FileType.Directory:
                self._fs.delete_dir(path)
            elif kind == pafs.FileType.File:
                for number in [0] if self.is_local else list_segments(self._fs, path):
                    self._fs.delete_file(segment(path, number))
        except OSError as error:
            raise CheckpointError(
                f"{path}: it could not be deleted ({reason_of(error)})"
            ) from error

    def holds_files(self, *, besides: str) -> bool:
        """Return whether it is a folder on a disk with anything in it besides a file."""
        try:
            found = [*self.local.iterdir()] if self.is_local else []
        except (FileNotFoundError, NotADirectoryError):
            return False
        return any(path.name != besides for path in found)

    def set_aside(self, suffix: str) -> RunFolder:
        """Rename an earlier run's folder, so that nothing is lost; return it under its new name.

        Raises:
            CheckpointError: If the storage refuses.
        """
        name, number = f"{self.local.name}.{suffix}", 1
        target = self.local.with_name(name)
        while os.path.lexists(target):  # never into an existing folder
            number += 1
            target = self.local.with_name(f"{name}-{number}")
        try:
            self.local.rename(target)
        except OSError as error:
            raise self._refused(target, error) from error
        return RunFolder(str(target))

    def _unreadable(self, path: str, error: OSError | ValueError) -> CheckpointError:
        is_away = isinstance(error, OSError) and not self.is_local
        way = "see that the storage can be reached and read" if is_away else START_FRESH_HINT
        return CheckpointError(f"{path}: it cannot be read ({reason_of(error)}); {way}")

    def _refused(self, path: Path | str, error: OSError) -> CheckpointError:
        way = "free space" if self.is_local else "see that the storage can be reached and written,"
        return CheckpointError(
            f"{path}: it could not be written ({reason_of(error)}); {way} or choose another "
            "run.storage"
        )


def new_attempt() -> str:
    """Return a new name of a submission of a job."""
    return secrets.token_hex(4)
