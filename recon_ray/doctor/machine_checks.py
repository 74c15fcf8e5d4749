"""Checks of one machine, run in the driver and on every node alike; they need no Ray."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from recon_ray.doctor.findings import Finding
from recon_ray.errors import OpsError
from recon_ray.machine import available_memory, cpu_count, memory_limit
from recon_ray.points import ops, reference
from recon_ray.version import __version__

#: Packages that must have the same version everywhere, and those where it may matter.
SAME = ("ray", "torch")
NEAR = ("numpy", "pyarrow", "recon-ray-ops")
#: Ray refuses work where its temporary folder's disk is 95 % full.
FULL_FRACTION = 0.95
LEAST_MEMORY = 2 * 1024**3
LEAST_FILES = 4096
SHARED_MEMORY = Path("/dev/shm")
GPU_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
CUDA_CHECK = (
    "import torch; x = torch.ones(1024, device='cuda').sum().item(); "
    "print(x == 1024, torch.version.cuda, torch.cuda.get_device_name(0))"
)


@dataclass(frozen=True)
class MachineRequest:
    """Reference values for the checks of a machine.

    Args:
        versions: :func:`versions` of the driver; empty in the driver itself.
        ops_backend: ``runtime.ops_backend``.
        driver_ops: Backend of the point operations in the driver.
        store_bytes: Object store of the node; None in the driver.
        gpus: GPUs that Ray counts on the node; None in the driver.
    """

    versions: Mapping[str, str]
    ops_backend: ops.BackendName
    driver_ops: str
    store_bytes: int | None = None
    gpus: float | None = None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version(), "recon_ray": __version__}
    for package in (*SAME, *NEAR):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def inspect_machine(request: MachineRequest) -> list[Finding]:
    """Run all checks of this machine."""
    checks = (_versions, _ops, _gpus, _memory, _shared_memory, _temporary_disk, _open_files)
    return [check(request) for check in checks]


def _versions(request: MachineRequest) -> Finding:
    own = versions()
    other = {name: v for name, v in request.versions.items() if own[name] != v}
    if not other:
        return Finding("versions", "ok", ", ".join(f"{name} {v}" for name, v in own.items()))
    state = ", ".join(f"{name} {own[name]} (driver: {v})" for name, v in other.items())
    minors = {v["python"].rpartition(".")[0] for v in (own, request.versions)}
    breaks = other.keys() & {*SAME, "recon_ray"} or len(minors) > 1
    advice = "install the same versions on every node"
    return Finding("versions", "error" if breaks else "warning", state, advice)


def _ops(request: MachineRequest) -> Finding:
    try:
        ops.set_backend(request.ops_backend)
        found = ops.backend()
        wrong = _compare_with_reference()
    except (OpsError, RuntimeError, ImportError) as error:
        message = str(error).partition("\n")[0]
        return Finding("ops", "error", message, f"rebuild them: {ops.BUILD_COMMAND}")
    if wrong:
        advice = f"rebuild them: {ops.BUILD_COMMAND}, or set runtime.ops_backend=reference"
        return Finding("ops", "error", f"{wrong} of {found} differs from the reference", advice)
    if request.driver_ops and found != request.driver_ops:
        state = f"{found} (driver: {request.driver_ops})"
        return Finding("ops", "warning", state, "install the same operations on every node")
    if found == "reference" and request.ops_backend == "auto":
        return Finding("ops", "warning", "plain torch, which is slow", "build them: make ops")
    return Finding("ops", "ok", f"{found}, as the reference on a small cloud")


def _compare_with_reference() -> str | None:
    """Return the first operation whose result differs from the reference, None if all agree."""
    points = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    for name, arguments in (
        ("furthest_point_sample", (points, 16)),
        ("knn", (points, points[:, :8], 4)),
        ("chamfer_distance", (points[:, :32], points[:, 32:])),
    ):
        found = getattr(ops, name)(*arguments)
        expected = getattr(reference, name)(*arguments)
        for ours, theirs in zip(found, expected, strict=True):
            if not torch.allclose(ours.double(), theirs.double(), rtol=1e-4, atol=1e-5):
                return name
    return None


def _gpus(request: MachineRequest) -> Finding:
    cards, counted = list_gpus(), request.gpus
    if not cards and not counted:
        return Finding("gpus", "ok", "none")
    if not cards:
        advice = "start the node with --num-gpus=0, or repair its driver"
        return Finding("gpus", "error", f"Ray counts {counted:g}, nvidia-smi lists none", advice)
    shown = f"{len(cards)} x {cards[0]}"
    if counted is not None and counted < len(cards):
        return Finding("gpus", "warning", f"{shown}; Ray counts {counted:g}", "restart the node")
    failure = _cuda_failure()
    if failure:
        return Finding("gpus", "error", f"{shown}; torch: {failure}", "install a torch with CUDA")
    return Finding("gpus", "ok", f"{shown}, usable by torch {torch.version.cuda}")


def list_gpus() -> list[str]:
    """List name, memory and driver of every GPU that ``nvidia-smi`` finds; empty without it."""
    try:
        done = subprocess.run(GPU_QUERY, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _cuda_failure() -> str:
    """Compute on a GPU in a separate process: Ray hides GPUs from processes that reserve none."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", CUDA_CHECK],
            capture_output=True, text=True, check=False, timeout=120, env=environment,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return type(error).__name__
    if done.stdout.startswith("True"):
        return ""
    return (done.stderr.strip().splitlines() or ["no answer"])[-1]


def _memory(_: MachineRequest) -> Finding:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = f"{gigabytes(min(total, memory_limit() or total))} in all, {cpu_count()} cores"
    available = available_memory()
    if available is not None and available < LEAST_MEMORY:
        state = f"{text}, {gigabytes(available)} available"
        return Finding("memory", "warning", state, "end other programs")
    return Finding("memory", "ok", text)


def _shared_memory(request: MachineRequest) -> Finding:
    if not SHARED_MEMORY.is_dir():
        return Finding("shared memory", "warning", "no /dev/shm", "the object store lies on disk")
    size = shutil.disk_usage(SHARED_MEMORY).total
    text = f"/dev/shm {gigabytes(size)}"
    if request.store_bytes is None:
        return Finding("shared memory", "ok", text)
    text += f", object store {gigabytes(request.store_bytes)}"
    if size >= request.store_bytes:
        return Finding("shared memory", "ok", text)
    return Finding(
        "shared memory", "warning", text,
        "Ray keeps objects on disk, which is slow: give the container more (--shm-size), or "
        "start the node with a smaller --object-store-memory",
    )  # fmt: skip


def _temporary_disk(_: MachineRequest) -> Finding:
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    usage = shutil.disk_usage(folder)
    used = 1 - usage.free / usage.total
    text = f"{folder}: {gigabytes(usage.free)} free"
    if used > FULL_FRACTION:
        advice = "free space there: Ray refuses work on a disk that is 95 % full"
        return Finding("temporary disk", "error", f"{text}, {used:.0%} used", advice)
    return Finding("temporary disk", "ok", text)


def _open_files(_: MachineRequest) -> Finding:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < LEAST_FILES:
        advice = "raise it before `ray start`: ulimit -n 65536"
        return Finding("open files", "warning", f"at most {soft}", advice)
    return Finding("open files", "ok", f"at most {soft}")


def gigabytes(size: float) -> str:
    """Format bytes in GiB."""
    return f"{size / 1024**3:.1f} GiB"
