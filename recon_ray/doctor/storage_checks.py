"""Return whether the storage of runs and the prepared set can be reached from everywhere."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import time
from pathlib import Path

from pyarrow import ArrowException
from pyarrow import fs as pafs

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.doctor.findings import Finding
from recon_ray.doctor.machine_checks import gigabytes
from recon_ray.errors import ConfigError, ReconError
from recon_ray.runs.storage import open_filesystem

#: What is written to measure the storage.
TRIAL_BYTES = 16 * 1024**2
LITTLE_SPACE = 2 * 1024**3
_WHAT_CAN_FAIL = (OSError, ArrowException, ReconError)


class Probe:
    """A file of the driver in the storage, by which nodes tell whether they see the same storage.

    Args:
        storage: ``run.storage``.
    """

    def __init__(self, storage: str) -> None:
        self.storage = storage
        self.name = f".recon-doctor-{secrets.token_hex(8)}"
        self.written = ""
        self._made: str | None = None

    def __enter__(self) -> Probe:
        return self

    def write(self) -> Finding:
        """Write it from the driver, and measure how fast."""
        try:
            filesystem, root = open_filesystem(self.storage)
            if filesystem.get_file_info(root).type == pafs.FileType.NotFound:
                filesystem.create_dir(root, recursive=True)
                self._made = root
            found = write_trial(self.storage, self.name)
        except _WHAT_CAN_FAIL as error:
            return _refused(self.storage, error)
        self.written = self.name
        return found

    def __exit__(self, *error: object) -> None:
        """Remove it, and the folder if it was made for it."""
        try:
            filesystem, root = open_filesystem(self.storage)
            if self.written:
                filesystem.delete_file(f"{root}/{self.written}")
            if self._made and not filesystem.get_file_info(pafs.FileSelector(root)):
                filesystem.delete_dir(root)
        except _WHAT_CAN_FAIL:
            pass  # what could not be written has been told already


def write_trial(storage: str, name: str) -> Finding:
    """Write and read back a file.

    Raises:
        OSError: If the storage refuses.
    """
    filesystem, root = open_filesystem(storage)
    block = secrets.token_bytes(TRIAL_BYTES)
    started = time.perf_counter()
    with filesystem.open_output_stream(f"{root}/{name}") as stream:
        stream.write(block)
    seconds = time.perf_counter() - started
    with filesystem.open_input_stream(f"{root}/{name}") as stream:
        same = stream.read() == block
    if not same:
        return Finding("storage", "error", f"{storage}: reads other bytes than were written")
    speed = f"{TRIAL_BYTES / 1024**2 / seconds:.0f} MiB/s"
    if isinstance(filesystem, pafs.LocalFileSystem):
        free = shutil.disk_usage(root).free
        if free < LITTLE_SPACE:
            told = f"{storage}: {gigabytes(free)} free"
            return Finding("storage", "warning", told, "free space, or choose another run.storage")
    return Finding("storage", "ok", f"{storage}: written and read" + _if_slow(speed, seconds))


def _if_slow(speed: str, seconds: float) -> str:
    return f", {speed}" if seconds > 1 else ""


def inspect_storage(storage: str, driver_probe: str) -> list[Finding]:
    """Look from a node for the driver's file, and write one of its own.

    Args:
        storage: ``run.storage``.
        driver_probe: Name of the file that the driver has written; empty if it could not.
    """
    own = f".recon-doctor-{secrets.token_hex(8)}"
    try:
        filesystem, root = open_filesystem(storage)
        if driver_probe and not _exists(filesystem, f"{root}/{driver_probe}"):
            return [
                Finding(
                    "storage", "error", f"{storage}: not the driver's, its file is not here",
                    "give a run.storage that all nodes share: a mounted folder, or a URI such as "
                    "s3://bucket/folder",
                )
            ]  # fmt: skip
        try:
            return [write_trial(storage, own)]
        finally:
            if _exists(filesystem, f"{root}/{own}"):
                filesystem.delete_file(f"{root}/{own}")
    except _WHAT_CAN_FAIL as error:
        return [_refused(storage, error)]


def _exists(filesystem: pafs.FileSystem, path: str) -> bool:
    return filesystem.get_file_info(path).type != pafs.FileType.NotFound


def _refused(storage: str, error: Exception) -> Finding:
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    advice = "choose another run.storage, or get the right to write there"
    return Finding("storage", "error", f"{storage}: {reason}", advice)


def inspect_data(path: str) -> list[Finding]:
    """Open the prepared set; nodes that find another one show another hash."""
    if not path:
        return []
    manifest = Path(path) / "_manifest.json"
    try:
        if not Path(path).is_dir():
            raise ConfigError("no such folder")
        prepared = PreparedSet.open(Path(path))
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()[:12]
    except _WHAT_CAN_FAIL as error:
        reason = str(error).partition("\n")[0].removeprefix(f"{path}: ")
        advice = "prepare it (jobs/prepare.py) in a folder that all nodes share"
        return [Finding("data", "error", f"{path}: {reason}", advice)]
    rows = ", ".join(f"{name} {split.rows:,}" for name, split in prepared.splits.items())
    return [Finding("data", "ok", f"{path}: {rows} (manifest {digest})")]
