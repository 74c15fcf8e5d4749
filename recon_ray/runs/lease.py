"""One job at a time in a run's folder: ``lease.json`` says who has it, and that he still lives.

The holder counts a number up. Whoever finds the file of another machine watches whether it changes,
so that clocks need not agree; on the same machine the process itself is looked for.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pyarrow import ArrowInvalid
from pyarrow import fs as pafs

from recon_ray.errors import CheckpointError, ConfigError, ReconError
from recon_ray.runs.storage import open_filesystem

logger = logging.getLogger(__name__)

FILE = "lease.json"
#: How often the holder counts up, and how long another machine's silence has to last.
BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 20.0
#: One answer of a storage may be wrong: how many must say that a lease is gone or cannot be read.
LOOKS, LOOK_SECONDS = 3, 1.0


@dataclass(frozen=True)
class Holder:
    """Who has a lease.

    Attributes:
        key: Random name of this taking.
        host: Name of the machine, for people.
        machine: What tells machines and containers apart.
        pid: Process id there.
        born: When that process was started, in the machine's own count.
        beat: How often it has said that it lives.
    """

    key: str
    host: str
    machine: str
    pid: int
    born: str
    beat: int = 0

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        pid = os.getpid()
        return cls(secrets.token_hex(8), socket.gethostname(), _machine(), pid, _born(pid))

    def is_dead(self) -> bool:
        """Return whether it ran on this machine and has ended."""
        return self.machine == _machine() and _born(self.pid) != self.born

    def is_this_process(self) -> bool:
        """Return whether it is this process, which runs one job after the other."""
        here = (_machine(), os.getpid(), _born(os.getpid()))
        return (self.machine, self.pid, self.born) == here


class Lease:
    """The right to write into a run's folder, until it is released or the process ends.

    Args:
        uri: Folder or URI of the run.
        name: ``run.name``, for the message.
    """

    def __init__(self, uri: str, name: str | None) -> None:
        self._uri = uri
        self._name = name
        self._fs, root = open_filesystem(uri)
        self._path = f"{root}/{FILE}"
        self._is_local = isinstance(self._fs, pafs.LocalFileSystem)
        self._own: Holder | None = None
        self._silent: Holder | None = None
        self._release: Callable[[], object] = lambda: None

    def check(self) -> None:
        """Wait until it is clear whether another job holds it.

        Raises:
            ConfigError: If one does.
            CheckpointError: If the storage does not say.
        """
        found = self._look()
        if found is None or found.is_this_process() or found.is_dead() or found == self._silent:
            return
        if found.machine != _machine():
            logger.info(
                "run.name=%s was last used by process %d on %s: waiting %g s to see whether it "
                "still runs", self._name, found.pid, found.host, PATIENCE_SECONDS,
            )  # fmt: skip
            if not self._changes(found):
                self._silent = found
                return
        raise ConfigError(
            f"run.name={self._name}: process {found.pid} on {found.host} is running it now, in "
            f"{self._uri}; wait for its end, stop it, or choose another run.name"
        )

    def take(self) -> None:
        """Take it; the folder is there.

        Raises:
            ConfigError: If another job has just done so, or an object store lets nobody write.
            CheckpointError: If the storage does not say, or does not take it (a full disk).
        """
        self.check()
        self._own = Holder.here()
        try:
            self._write(self._own)
        except OSError as error:
            raise self._refused(error) from error
        found = self._look()
        if found is None or found.key != self._own.key:
            raise ConfigError(
                f"run.name={self._name}: another job has begun it in the same moment, in "
                f"{self._uri}; choose another run.name"
            )
        stopped, writing = threading.Event(), threading.RLock()
        thread = threading.Thread(
            target=_beat, args=(weakref.ref(self), stopped, writing), daemon=True, name="lease"
        )
        thread.start()
        # At the end of the process too, and when a failed job's run is forgotten.
        end = (self._fs, self._path, self._own.key, stopped, writing)
        self._release = weakref.finalize(self, _end, *end)

    def release(self) -> None:
        """Let another job have it."""
        self._release()

    def renew(self) -> Holder | None:
        """Count up, or give who has taken it since."""
        try:
            found = self._read()
        except OSError:
            return None  # it may be another one's: nothing is written over it
        except ValueError:
            found = None
        if self._own is None or (found is not None and found.key != self._own.key):
            return found
        self._own = replace(self._own, beat=self._own.beat + 1)
        try:
            self._write(self._own)
        except (OSError, ArrowInvalid) as error:  # a full disk is left to whoever writes next
            logger.debug("%s: %s", self._path, error)
        return None

    def _changes(self, found: Holder) -> bool:
        until = time.monotonic() + PATIENCE_SECONDS
        gone = 0
        while gone < LOOKS:
            time.sleep(min(LOOK_SECONDS, PATIENCE_SECONDS / 10))
            try:
                now = self._read()
            except (OSError, ValueError) as error:  # which says nothing
                if time.monotonic() > until + PATIENCE_SECONDS:
                    raise self._unreadable(str(error)) from error
                continue
            if now is None:
                gone += 1
            elif now != found:
                return True
            elif time.monotonic() > until:
                return False
            else:
                gone = 0
        return False

    def _look(self) -> Holder | None:
        """Read it, several times where that fails; a damaged one is nobody's."""
        for left in reversed(range(LOOKS)):
            try:
                return self._read()
            except (OSError, ValueError) as error:
                if not left and isinstance(error, OSError):
                    raise self._unreadable(str(error)) from error
            time.sleep(LOOK_SECONDS if left else 0)
        return None

    def _read(self) -> Holder | None:
        return _read(self._fs, self._path)

    def _unreadable(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path}: it cannot be read ({reason}), so that nothing says whether another job "
            f"runs run.name={self._name}; try again when the storage answers"
        )

    def _write(self, holder: Holder) -> None:
        """Write the file at once."""
        text = json.dumps(asdict(holder))
        if not self._is_local:
            with self._fs.open_output_stream(self._path) as stream:
                stream.write(text.encode())
            return
        partial = Path(f"{self._path}.{holder.key}")
        try:
            partial.write_text(text)
            partial.replace(self._path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def _refused(self, error: OSError) -> ReconError:
        reason = error.strerror or str(error).partition("\n")[0]
        if self._is_local:
            return CheckpointError(
                f"{self._path}: it could not be written ({reason}); free space or choose another "
                "run.storage"
            )
        return ConfigError(
            f"run.storage: {self._path} cannot be written ({reason}); see that the bucket is there "
            "and may be written from here, or choose another run.storage"
        )


def _beat(lease: weakref.ref[Lease], stopped: threading.Event, writing: threading.RLock) -> None:
    """Count up until the lease is released; end the job where another one has taken it."""
    while not stopped.wait(BEAT_SECONDS):
        held = lease()
        if held is None:
            return
        with writing:  # never after the file has been removed
            if stopped.is_set():
                return
            other = held.renew()
        if other is not None:
            if not (other.is_this_process() or stopped.is_set()):
                logger.error("%s has taken over the folder of this run: it ends", other.host)
                os.kill(os.getpid(), signal.SIGTERM)
            return
        del held


def _end(
    fs: pafs.FileSystem, path: str, key: str, stopped: threading.Event, writing: threading.RLock
) -> None:
    with writing:
        stopped.set()
        try:
            found = _read(fs, path)
            if found is not None and found.key == key:
                fs.delete_file(path)
        except (OSError, ValueError) as error:
            logger.debug("%s: %s", path, error)


def _read(fs: pafs.FileSystem, path: str) -> Holder | None:
    """Return the lease, or None where there is none.

    Raises:
        OSError: If the storage does not answer.
        ValueError: If it is half written, or foreign.
    """
    if fs.get_file_info(path).type == pafs.FileType.NotFound:
        return None
    try:
        with fs.open_input_stream(path) as stream:
            content = bytes(stream.read())
    except FileNotFoundError:  # just now
        return None
    try:
        return Holder(**json.loads(content))
    except TypeError as error:
        raise ValueError(f"{path}: no lease") from error


def _machine() -> str:
    """What tells machines, and containers on one of them, apart."""
    parts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: str(Path("/proc/self/ns/pid").readlink()),
    ):
        try:
            parts.append(read())
        except OSError:
            continue
    return " ".join(parts)


def _born(pid: int) -> str:
    """When a process was started, empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
