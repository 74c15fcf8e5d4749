"""Object store in this process's memory that counts its requests and bytes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import fsspec
import pyarrow as pa
from pyarrow import fs as pafs

#: Names that an object store returns at once.
LISTED_AT_ONCE = 1000


class CountedStore(pafs.FSSpecHandler):
    """Handler of a ``pyarrow.fs.PyFileSystem`` with the costs of an object store.

    Args:
        latency: Seconds that a request takes.

    Attributes:
        requests: Operation (``look``, ``list``, ``read``, ``write``, ``make``, ``delete``) to the
            number of requests.
        bytes: ``read`` and ``write`` to the number of bytes.
    """

    def __init__(self, latency: float = 0.0) -> None:
        memory = fsspec.filesystem("memory", skip_instance_cache=True)
        memory.store, memory.pseudo_dirs = {}, [""]  # its own, instead of one a process
        super().__init__(memory)
        self.latency = latency
        self.requests: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def taken(self) -> dict[str, int]:
        """Return all requests, and the bytes read and written, since the last call."""
        found = {"requests": self.requests.total(), **{k: self.bytes[k] for k in ("read", "write")}}
        self.requests.clear()
        self.bytes.clear()
        return found

    def _count(self, operation: str, requests: int = 1) -> None:
        self.requests[operation] += requests
        if self.latency:
            time.sleep(self.latency * requests)

    def get_file_info(self, paths: Sequence[str]) -> list[pafs.FileInfo]:
        """Look at files, one request each."""
        self._count("look", len(paths))
        return super().get_file_info(paths)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """List a folder, a thousand names a request."""
        found = super().get_file_info_selector(selector)
        self._count("list", 1 + len(found) // LISTED_AT_ONCE)
        return found

    def create_dir(self, path: str, recursive: bool) -> None:
        """Make a folder."""
        self._count("make")
        super().create_dir(path, recursive)

    def delete_dir(self, path: str) -> None:
        """Delete a folder."""
        self._count("delete")
        super().delete_dir(path)

    def delete_file(self, path: str) -> None:
        """Delete a file."""
        self._count("delete")
        super().delete_file(path)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """Read a file."""
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Read a file, a request a range that is read."""
        if not self.fs.isfile(path):
            raise FileNotFoundError(path)
        return pa.PythonFile(_CountedFile(self, self.fs.open(path, "rb")), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:  # noqa: ANN401
        """Write a file, in one request."""
        del metadata
        self._count("write")
        return pa.PythonFile(_CountedFile(self, self.fs.open(path, "wb")), mode="w")


class _CountedFile:
    """A file whose reads and writes its store counts."""

    def __init__(self, store: CountedStore, file: Any) -> None:  # noqa: ANN401 - fsspec's
        self._store, self._file = store, file

    def read(self, size: int = -1) -> bytes:
        content = bytes(self._file.read(size))
        if content:
            self._store._count("read")
            self._store.bytes["read"] += len(content)
        return content

    def write(self, content: bytes) -> int:
        self._store.bytes["write"] += len(content)
        return int(self._file.write(content))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - seek, tell, close, ...
        return getattr(self._file, name)
