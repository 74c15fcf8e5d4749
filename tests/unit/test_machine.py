"""CPUs and memory that a process may use, not those of the host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recon_ray import machine

# In a process of its own: an affinity that was taken away may not come back.
ONE_CPU = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from recon_ray.machine import cpu_count
print(cpu_count())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux says what it may use")
def test_only_the_cpus_of_the_affinity_count():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ONE_CPU]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert 1 <= machine.cpu_count() <= len(os.sched_getaffinity(0))


def _files(folder: Path, contents: dict[str, object]) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


V2 = {"memory.max": 9000, "memory.current": 7000, "memory.stat": "anon 1\ninactive_file 500"}
V1 = {
    "memory/memory.limit_in_bytes": 9000,
    "memory/memory.usage_in_bytes": 7000,
    "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 500",
}


@pytest.mark.parametrize(
    ("files", "host", "limit", "available"),
    [
        (V2, 1024, 9000, 2500),
        (V1, 1024, 9000, 2500),
        (V2, 1, 9000, 1024),
        ({**V2, "memory.max": "max"}, 3, None, 3072),
        ({**V1, "memory/memory.limit_in_bytes": 9223372036854771712}, 3, None, 3072),
        ({}, 3, None, 3072),
        ({**V2, "memory.current": 9900}, 1024, 9000, 0),
    ],
)
def test_memory_left_by_container_and_host(tmp_path, monkeypatch, files, host, limit, available):
    _files(tmp_path, {**files, "meminfo": f"MemTotal: 9 kB\nMemAvailable:   {host} kB"})
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    assert machine.memory_limit() == limit
    assert machine.available_memory() == available


def test_where_nothing_is_known_of_the_memory_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    assert (machine.memory_limit(), machine.available_memory()) == (None, None)


def test_the_working_directory_is_known_when_another_one_took_its_place(tmp_path, monkeypatch):
    folder = tmp_path / "package"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert machine.working_directory() == str(folder)
    folder.rmdir()
    folder.mkdir()
    with pytest.raises(FileNotFoundError):
        Path.cwd()
    assert machine.working_directory() == str(folder)
