"""CPUs and memory that this process may use, and its working directory."""

from __future__ import annotations

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")  # a container sees its own limits there
MEMINFO = Path("/proc/meminfo")


def cpu_count() -> int:
    """Return the CPUs that this process may use.

    ``os.cpu_count`` returns those of the host: on 64 cores, a job with 8 of them would start eight
    times as many threads. This is the smallest of the cores, the process's affinity and, rounded
    up, the CPU quota of its container (cgroup v1 or v2).
    """
    from joblib import cpu_count as usable  # some tenths of a second of imports

    return int(usable())


def memory_limit() -> int | None:
    """Return the bytes that the container may use, None where there is no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2, v1
        limit = _number(CGROUPS / name)
        if limit is not None:
            return limit if limit < 1 << 60 else None  # v1 has a huge number for no limit
    return None


def available_memory() -> int | None:
    """Return the bytes of memory still available, caches included; None if it is not known."""
    host = _entry(MEMINFO, "MemAvailable:")
    found = [] if host is None else [host * 1024]
    limit = memory_limit()
    for folder, used, cached in (
        (CGROUPS, "memory.current", "inactive_file"),
        (CGROUPS / "memory", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        current = _number(folder / used)
        if limit is not None and current is not None:
            freed = _entry(folder / "memory.stat", cached) or 0
            found.append(max(0, limit - current + freed))
    return min(found, default=None)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _entry(path: Path, name: str) -> int | None:
    """Return the number after a name at the start of a line; None if there is no such line."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    words = (line.split() for line in lines)
    return next((int(found[1]) for found in words if found[:1] == [name]), None)


def working_directory() -> str:
    """Return the folder to which paths are relative.

    Where several nodes of a cluster are on one machine, Ray unpacks a job's files once for each,
    and replaces the folder of a running process by another one of the same name.
    """
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return str(Path("/proc/self/cwd").readlink()).removesuffix(" (deleted)")
