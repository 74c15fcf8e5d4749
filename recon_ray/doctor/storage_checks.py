"""Checks whether the storage of runs and the prepared set can be reached from everywhere."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pyarrow import ArrowException
from pyarrow import fs as pafs

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.doctor.findings import Finding
from recon_ray.doctor.machine_checks import gigabytes
from recon_ray.errors import ConfigError, ReconError
from recon_ray.storage import Place, exists, open_filesystem, reason_of

#: Size of the file that is written.
TRIAL_BYTES = 16 * 1024**2
LITTLE_SPACE = 2 * 1024**3
_FAILURES = (OSError, ArrowException, ReconError)


@contextmanager
def driver_probe(storage: str) -> Iterator[tuple[str, Finding]]:
    """Keep a file in the storage; nodes that see it share the driver's storage.

    The file is removed at the end, with the storage's folder if it was made for it.

    Args:
        storage: ``run.storage``.

    Yields:
        The file's name, empty if it could not be written; and the finding of writing it.
    """
    name, made = _probe_name(), False
    try:
        filesystem, root = open_filesystem(storage)
        if not exists(filesystem, root):
            filesystem.create_dir(root, recursive=True)
            made = True
        probe, finding = name, write_trial(storage, name)
    except _FAILURES as error:
        probe, finding = "", _refused(storage, error)
    try:
        yield probe, finding
    finally:
        with suppress(*_FAILURES):  # an error was reported already
            filesystem, root = open_filesystem(storage)
            if exists(filesystem, f"{root}/{name}"):
                filesystem.delete_file(f"{root}/{name}")
            if made and not filesystem.get_file_info(pafs.FileSelector(root)):
                filesystem.delete_dir(root)


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
    if isinstance(filesystem, pafs.LocalFileSystem):
        free = shutil.disk_usage(root).free
        if free < LITTLE_SPACE:
            state = f"{storage}: {gigabytes(free)} free"
            return Finding("storage", "warning", state, "free space, or choose another run.storage")
    speed = f", {TRIAL_BYTES / 1024**2 / seconds:.0f} MiB/s" if seconds > 1 else ""
    return Finding("storage", "ok", f"{storage}: written and read{speed}")


def inspect_storage(storage: str, probe: str) -> Finding:
    """Look on a node for the driver's file, and write one of its own.

    Args:
        storage: ``run.storage``.
        probe: Name of the driver's file (:func:`driver_probe`); empty without one.
    """
    own = _probe_name()
    try:
        filesystem, root = open_filesystem(storage)
        if probe and not exists(filesystem, f"{root}/{probe}"):
            return Finding(
                "storage", "error", f"{storage}: not the driver's, its file is not here",
                "give a run.storage that all nodes share: a mounted folder, or a URI such as "
                "s3://bucket/folder",
            )  # fmt: skip
        try:
            return write_trial(storage, own)
        finally:
            if exists(filesystem, f"{root}/{own}"):
                filesystem.delete_file(f"{root}/{own}")
    except _FAILURES as error:
        return _refused(storage, error)


def _probe_name() -> str:
    return f".recon-doctor-{secrets.token_hex(8)}"


def _refused(storage: str, error: Exception) -> Finding:
    advice = "choose another run.storage, or get the right to write there"
    return Finding("storage", "error", f"{storage}: {reason_of(error)}", advice)


def inspect_data(path: str) -> list[Finding]:
    """Open the prepared set, if one is given; nodes with another one show another hash."""
    if not path:
        return []
    try:
        if not Place.of(path).is_dir():
            raise ConfigError("no such folder")
        prepared = PreparedSet.open(path)
        digest = prepared.manifest_hash[:12]
    except _FAILURES as error:
        reason = str(error).partition("\n")[0]
        state = reason if reason.startswith(path) else f"{path}: {reason}"
        advice = "prepare it (jobs/prepare.py) in a folder that all nodes share"
        return [Finding("data", "error", state, advice)]
    rows = ", ".join(f"{name} {split.rows:,}" for name, split in prepared.splits.items())
    return [Finding("data", "ok", f"{path}: {rows} (manifest {digest})")]
