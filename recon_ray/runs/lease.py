"""Heartbeat file ``lease.json`` that keeps two jobs from writing to one run folder.

The holder increments a counter in the file. A job that finds the file of another machine watches
whether it changes, so that clocks need not agree; on the same machine it looks for the process,
where ``/proc`` shows when that was started: the number alone may be another one's by now.

Of several jobs that begin a run at the same time, one gets the file: by a lock on a disk, and by
conditional writes on S3 where boto3 is installed (see :mod:`recon_ray.runs.conditional`). Elsewhere
the last of them has it; the others find that out when they read it again.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pyarrow import ArrowInvalid
from pyarrow import fs as pafs

from recon_ray.errors import CheckpointError, ConfigError, ReconError
from recon_ray.runs.conditional import conditional_object
from recon_ray.storage import (
    join,
    open_filesystem,
    read_bytes,
    reason_of,
    replace_file,
    with_retries,
)

logger = logging.getLogger(__name__)

FILE = "lease.json"
#: Where Linux shows its processes; macOS has none.
PROC = Path("/proc")
#: Seconds between two beats, and for how long the file of another machine has to stay the same.
BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 20.0
#: One answer of a storage may be wrong: how many must agree that a lease is gone or unreadable.
LOOKS, LOOK_SECONDS = 3, 1.0


@dataclass(frozen=True)
class Holder:
    """Process that holds a lease: the content of the file.

    Attributes:
        key: Random name of this lease.
        host: Name of the machine, for people.
        machine: Identity of the machine, or of a container on it.
        pid: Process id there.
        born: Start of that process, in the machine's own count; empty without ``/proc``.
        beat: Heartbeats so far.
    """

    key: str
    host: str
    machine: str
    pid: int
    born: str
    beat: int = 0

    @classmethod
    def here(cls) -> Holder:
        """Return a new one of this process."""
        pid = os.getpid()
        return cls(secrets.token_hex(8), socket.gethostname(), _machine(), pid, _born(pid))

    @property
    def is_visible(self) -> bool:
        """Return whether this process could see it running."""
        return self.machine == _machine() and bool(self.born)

    def is_dead(self) -> bool:
        """Return whether it ran on this machine and has ended."""
        if not self.is_visible:
            return False
        now = _born(self.pid)
        return now != self.born if now else not _exists(self.pid)

    def is_this_process(self) -> bool:
        """Return whether it is this process, which runs one job after the other."""
        here = (_machine(), os.getpid(), _born(os.getpid()))
        return (self.machine, self.pid, self.born) == here


class LeaseFile:
    """The file in a run's folder, and the thread that renews it."""

    def __init__(self, uri: str) -> None:
        self._fs, root = open_filesystem(uri)
        self.path = f"{root}/{FILE}"
        self.is_local = isinstance(self._fs, pafs.LocalFileSystem)
        self._object = None if self.is_local else conditional_object(join(uri, FILE))
        self.own: Holder | None = None
        self._stopped, self._writing = threading.Event(), threading.RLock()

    def read(self) -> Holder | None:
        """Return the holder, or None where there is no file.

        Raises:
            OSError: If the storage does not answer.
            ValueError: If the file is half written, or not a lease.
        """
        content = read_bytes(self._fs, self.path) if self._object is None else self._object.read()
        return None if content is None else self._parsed(content)

    def _parsed(self, content: bytes) -> Holder:
        try:
            return Holder(**json.loads(content))
        except TypeError as error:
            raise ValueError(f"{self.path}: not a lease") from error

    def create(self, holder: Holder, stale: Holder | None) -> bool:
        """Write the file unless another job has been faster; return whether this one has it.

        One job at a time looks and writes, by a lock on the file or a conditional write; some
        object stores and network file systems have neither.

        Args:
            holder: The new holder.
            stale: Holder that may be replaced; a damaged file may be anyway.

        Raises:
            OSError: If the storage refuses.
        """
        if not self.is_local:
            with suppress(ValueError):
                found = self.read()
                if found is not None and (stale is None or found.key != stale.key):
                    return False
            return self.write(holder)
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX)
                if self._is_open(file):
                    return self._write_locked(file, holder, stale)
            finally:
                os.close(file)

    def _is_open(self, file: int) -> bool:
        """Return whether an open file is still the one of that name."""
        try:
            return os.path.samestat(os.fstat(file), Path(self.path).stat())
        except FileNotFoundError:
            return False

    def _write_locked(self, file: int, holder: Holder, stale: Holder | None) -> bool:
        with suppress(ValueError):
            found = self._parsed(os.read(file, 1 << 16))
            if stale is None or found.key != stale.key:
                return False
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(asdict(holder)).encode(), 0)
        except OSError:  # a full disk
            Path(self.path).unlink(missing_ok=True)
            raise
        return True

    def write(self, holder: Holder) -> bool:
        """Replace the file in one step; return False if another job was seen to be faster.

        Raises:
            OSError: If the storage refuses.
        """
        text = json.dumps(asdict(holder))
        if self._object is not None:
            return self._object.write(text.encode())
        if self.is_local:
            replace_file(Path(self.path), text)
            return True
        with self._fs.open_output_stream(self.path) as stream:
            stream.write(text.encode())
        return True

    def keeps_changing(self, found: Holder) -> bool:
        """Watch the file for :data:`PATIENCE_SECONDS`; return whether its holder is alive.

        Raises:
            OSError: If the storage does not answer for as long again.
            ValueError: If the file stays damaged for as long again.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        gone = 0
        while gone < LOOKS:
            time.sleep(min(LOOK_SECONDS, PATIENCE_SECONDS / 10))
            try:
                now = self.read()
            except (OSError, ValueError):
                if time.monotonic() > deadline + PATIENCE_SECONDS:
                    raise
                continue
            if now is not None and now != found:
                return True
            if now is not None and time.monotonic() > deadline:
                return False
            gone = gone + 1 if now is None else 0
        return False

    def hold(self, own: Holder) -> None:
        """Count up in a thread of this process until :meth:`delete`.

        Where another process has taken over, the thread ends the job.
        """
        self.own = own
        threading.Thread(target=self._beat, daemon=True, name="lease").start()

    def delete(self) -> None:
        """End the thread and delete the file, unless it is another holder's or unreadable."""
        with self._writing:
            self._stopped.set()
            with suppress(OSError, ValueError):
                found = self.read()
                if found is not None and self.own is not None and found.key == self.own.key:
                    self._fs.delete_file(self.path)

    def renew(self) -> Holder | None:
        """Count up, or return the holder that has taken over."""
        try:
            found = self.read()
        except OSError:
            return None  # it may be another's: nothing is written over it
        except ValueError:
            found = None
        if self.own is None or (found is not None and found.key != self.own.key):
            return found
        self.own = replace(self.own, beat=self.own.beat + 1)
        try:
            is_mine = self.write(self.own)
        except (OSError, ArrowInvalid) as error:  # the next checkpoint reports a full disk
            logger.debug("%s: %s", self.path, error)
            return None
        return None if is_mine else self._taken_over_by()

    def _taken_over_by(self) -> Holder | None:
        """Return the holder that was faster; None where it is this one or cannot be read."""
        with suppress(OSError, ValueError):
            found = self.read()
            if found is not None and self.own is not None and found.key != self.own.key:
                return found
        return None

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            with self._writing:  # never after the file has been deleted
                other = None if self._stopped.is_set() else self.renew()
            if other is not None:
                if not (other.is_this_process() or self._stopped.is_set()):
                    logger.error("%s has taken over the folder of this run: it ends", other.host)
                    os.kill(os.getpid(), signal.SIGTERM)
                return


class Lease:
    """The right to write to a run's folder, until it is released or the process ends.

    Args:
        uri: Folder or URI of the run.
        name: ``run.name``, for messages.
    """

    def __init__(self, uri: str, name: str | None) -> None:
        self._uri = uri
        self._name = name
        self._file = LeaseFile(uri)
        self._silent: Holder | None = None
        self._finalizer: weakref.finalize | None = None

    def check(self) -> Holder | None:
        """Wait until it is clear that no other job holds the lease; return whose file is left.

        Raises:
            ConfigError: If one does.
            CheckpointError: If the file cannot be read.
        """
        found = self._found()
        if found is None or found.is_this_process() or found.is_dead() or found == self._silent:
            return found
        if not found.is_visible:
            logger.info(
                "run.name=%s was last used by process %d on %s: waiting %g s to see whether it "
                "still runs", self._name, found.pid, found.host, PATIENCE_SECONDS,
            )  # fmt: skip
            try:
                is_alive = self._file.keeps_changing(found)
            except (OSError, ValueError) as error:
                raise self._unreadable(error) from error
            if not is_alive:
                self._silent = found
                return found
        raise ConfigError(
            f"run.name={self._name}: process {found.pid} on {found.host} is running it now, in "
            f"{self._uri}; wait for its end, stop it, or choose another run.name"
        )

    def claim(self) -> Holder:
        """Write the file, for good or to set the folder aside; the folder exists.

        Raises:
            ConfigError: If another job has just done so, or the object store cannot be written.
            CheckpointError: If the file cannot be read, or not be written (a full disk).
        """
        stale, own = self.check(), Holder.here()
        try:
            is_mine = self._file.create(own, stale)
        except FileNotFoundError:  # the folder has just been set aside
            is_mine = False
        except OSError as error:
            raise self._refused(error) from error
        found = self._found() if is_mine else None
        if found is None or found.key != own.key:
            raise ConfigError(
                f"run.name={self._name}: another job has begun it in the same moment, in "
                f"{self._uri}; choose another run.name"
            )
        return own

    def take(self) -> None:
        """Take the lease; the folder exists.

        Raises:
            ConfigError: As :meth:`claim`.
            CheckpointError: As :meth:`claim`.
        """
        self._file.hold(self.claim())
        # At the end of the process too, and when a failed job's run is garbage.
        self._finalizer = weakref.finalize(self, self._file.delete)

    def release(self) -> None:
        """Let another job have it."""
        if self._finalizer is not None:
            self._finalizer()

    def _found(self) -> Holder | None:
        """Return the holder; a file that stays damaged has none."""
        for _ in range(LOOKS):
            try:
                return with_retries(self._file.read)
            except OSError as error:
                raise self._unreadable(error) from error
            except ValueError:
                time.sleep(LOOK_SECONDS)
        return None

    def _unreadable(self, error: OSError | ValueError) -> CheckpointError:
        return CheckpointError(
            f"{self._file.path}: it cannot be read ({error}), so that another job may be running "
            f"run.name={self._name}; try again when the storage answers"
        )

    def _refused(self, error: OSError) -> ReconError:
        if self._file.is_local:
            return CheckpointError(
                f"{self._file.path}: it could not be written ({reason_of(error)}); free space or "
                "choose another run.storage"
            )
        return ConfigError(
            f"run.storage: {self._file.path} cannot be written ({reason_of(error)}); see that the "
            "bucket is there and may be written from here, or choose another run.storage"
        )


def _machine() -> str:
    """Return the identity of this machine, or of the container in which this process runs."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append((PROC / "sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str((PROC / "self/ns/pid").readlink()))
    return " ".join(parts)


def _born(pid: int) -> str:
    """Return when a process was started; empty for one that has ended or cannot be seen."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _exists(pid: int) -> bool:
    """Return whether there is a process; other users' may be hidden in ``/proc``."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
