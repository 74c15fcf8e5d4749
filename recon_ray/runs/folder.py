"""The folder of a run, on a local disk or in an object store."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pyarrow import fs as pafs

from recon_ray.errors import CheckpointError
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

    Files are written below :attr:`local`; :meth:`publish` copies them to the URI where that is
    another place. Nothing is made before the first file is written.

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

        def content() -> bytes | None:
            return read_bytes(self._fs, path)

        try:
            return content() if self.is_local else with_retries(content)
        except OSError as error:
            raise self._unreadable(path, error) from error

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
                    stream.write(_line_after(stream.read()) + text.encode())
                return
            # No local copy: publishing that of one process would undo what others have added.
            before = self._content(name) or b""
            with self._fs.open_output_stream(path) as output:
                output.write(before + _line_after(before) + text.encode())
        except OSError as error:
            raise self._refused(path, error) from error

    def publish(self) -> None:
        """Copy what was written to the object store, if the run lies on one.

        Raises:
            CheckpointError: If the storage refuses.
        """
        if self.is_local:
            return
        local = pafs.LocalFileSystem()
        try:
            with_retries(lambda: pafs.copy_files(str(self.local), self._root, local, self._fs))
        except OSError as error:
            raise self._refused(self.uri, error) from error

    def fetch(self, name: str) -> None:
        """Copy a file of an earlier attempt from the object store, to continue it."""
        content = None if self.is_local else self._content(name)
        if content is not None:
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
                self._fs.delete_file(path)
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


def _line_after(before: bytes) -> bytes:
    """Return the end of a last line that a killed process, or a full disk, has cut off."""
    return b"" if not before or before.endswith(b"\n") else b"\n"


def new_attempt() -> str:
    """Return a new name of a submission of a job."""
    return secrets.token_hex(4)
