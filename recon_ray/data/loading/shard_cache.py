"""Copies of shards on a node's own disk, shared by all processes of the node.

Neither of the libraries that come near fits: ``fsspec``'s caches have no bound, and ``diskcache``
keeps an index in SQLite and values as pickles. Here the files are the index: a hit sets the time of
the file, and the oldest go first. Whoever has a file open when it is evicted reads on.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recon_ray.data.format.files import damaged
from recon_ray.data.format.shards import ShardFile
from recon_ray.errors import DataError
from recon_ray.storage import TEMPORARY, reason_of

#: Locks; processes that want the same file at once wait for the one that fetches it.
LOCKS = 64


@dataclass(frozen=True)
class ShardCache:
    """A folder of copies of files, bounded by bytes.

    Args:
        folder: A folder on a disk of the node; None for one of temporary files.
        limit: Most bytes of all copies together.
    """

    folder: Path | None
    limit: int

    @property
    def place(self) -> Path:
        """Return the folder on this node."""
        return self.folder or Path(tempfile.gettempdir(), f"recon-ray-shards-{os.getuid()}")

    def copy_of(self, file: ShardFile) -> Path | ShardFile:
        """Return the copy of a file, fetched by one process of the node; the file if it is larger.

        Another process may evict a copy again before it is opened: read the file itself then.

        Raises:
            DataError: If it cannot be fetched or is damaged, or the folder cannot be written to.
        """
        key = file.sha256[:40]  # a set that is prepared again has other ones
        copy = self.place / f"{key}.parquet"
        if _touch(copy):
            return copy
        with self._locked(f"{int(key, 16) % LOCKS}"):
            if _touch(copy):
                return copy
            try:
                content = file.read_bytes()
            except OSError as error:
                raise DataError(f"{file}: cannot be read ({reason_of(error)})") from error
            if hashlib.sha256(content).hexdigest() != file.sha256:
                raise damaged(file)
            if len(content) > self.limit:
                return file
            with self._locked("room"):
                self._write(copy, content)
        return copy

    def _write(self, copy: Path, content: bytes) -> None:
        temporary = copy.with_name(f"{TEMPORARY}{os.getpid()}-{copy.name}")
        try:
            self._make_room(len(content))
            temporary.write_bytes(content)
            temporary.replace(copy)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise self._not_writable(error) from error

    def _make_room(self, size: int) -> None:
        """Remove the copies that were not used for the longest time, until ``size`` bytes fit."""
        found = []
        for entry in os.scandir(self.place):
            with contextlib.suppress(FileNotFoundError):  # a temporary file, renamed just now
                state = entry.stat()
                found.append((state.st_mtime_ns, state.st_size, entry.path))
        total = size + sum(taken for _, taken, _ in found)
        for _, freed, path in sorted(found):
            if total <= self.limit:
                return
            if freed:  # no lock
                Path(path).unlink(missing_ok=True)
                total -= freed

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold a lock; the system frees those of a process that dies."""
        try:
            self.place.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = (self.place / f"{name}.lock").open("w")
        except OSError as error:
            raise self._not_writable(error) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _not_writable(self, error: OSError) -> DataError:
        return DataError(
            f"data.cache_folder: {self.place} cannot be written to ({error.strerror or error}); "
            "lower data.cache_bytes or choose another folder"
        )


def _touch(copy: Path) -> bool:
    """Mark a copy as used now; return whether it is there."""
    try:
        os.utime(copy)
    except OSError:  # not there, or the folder cannot be written to, which is refused later
        return False
    return True
