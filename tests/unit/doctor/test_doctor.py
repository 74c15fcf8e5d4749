"""Checks of the doctor that need no Ray, and their table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from recon_ray.doctor import machine_checks as machine
from recon_ray.doctor import storage_checks as storage
from recon_ray.doctor.findings import Finding, format_table, gather
from recon_ray.doctor.machine_checks import MachineRequest, inspect_machine, versions
from recon_ray.doctor.storage_checks import driver_probe, inspect_data, inspect_storage
from recon_ray.points import ops


def request(**changes: object) -> MachineRequest:
    return MachineRequest(**{"versions": {}, "ops_backend": "auto", "driver_ops": "", **changes})


def found(check: str, **changes: object) -> Finding:
    return next(f for f in inspect_machine(request(**changes)) if f.check == check)


def test_this_machine_has_no_errors():
    assert [f for f in inspect_machine(request()) if f.level == "error"] == []


@pytest.mark.parametrize(
    ("package", "level"),
    [("torch", "error"), ("ray", "error"), ("recon_ray", "error"), ("numpy", "warning")],
)
def test_another_version_than_the_drivers_is_named(package, level):
    finding = found("versions", versions={**versions(), package: "0.0.1"})
    assert finding.level == level
    assert finding.found == f"{package} {versions()[package]} (driver: 0.0.1)"


def test_another_patch_level_of_python_is_only_a_warning():
    major, minor, _ = versions()["python"].split(".")
    assert found("versions", versions={**versions(), "python": f"{major}.{minor}.99"}).level == (
        "warning"
    )
    assert found("versions", versions={**versions(), "python": f"{major}.1.0"}).level == "error"


def test_operations_that_compute_something_else_are_an_error(monkeypatch):
    knn = ops.knn

    def wrong(*arguments, **options):
        distances, indices = knn(*arguments, **options)
        return distances, torch.roll(indices, 1, dims=-1)

    monkeypatch.setattr(ops, "knn", wrong)
    finding = found("ops")
    assert finding.level == "error"
    assert finding.found.startswith("knn of ")


def test_gpus_that_torch_cannot_use_or_nobody_lists_are_an_error(monkeypatch):
    monkeypatch.setattr(machine, "list_gpus", lambda: ["NVIDIA X, 1 MiB, 1.0"] * 2)
    monkeypatch.setattr(machine, "CUDA_CHECK", "raise RuntimeError('no CUDA here')")
    finding = found("gpus", gpus=2.0)
    assert finding.level == "error"
    assert "RuntimeError: no CUDA here" in finding.found
    assert found("gpus", gpus=1.0).found.endswith("Ray counts 1")
    monkeypatch.setattr(machine, "list_gpus", list)
    assert found("gpus", gpus=2.0).level == "error"
    assert found("gpus", gpus=0.0) == Finding("gpus", "ok", "none")


def test_a_full_temporary_disk_or_shared_memory_is_named(monkeypatch):
    assert found("shared memory", store_bytes=1 << 50).level == "warning"
    assert found("shared memory", store_bytes=1 << 20).level == "ok"
    usage = type("Usage", (), {"total": 1000, "free": 20, "used": 980})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    assert found("temporary disk").level == "error"


def test_a_probe_leaves_nothing_behind(tmp_path):
    with driver_probe(str(tmp_path / "runs")) as (probe, finding):
        assert finding == Finding("storage", "ok", f"{tmp_path}/runs: written and read")
        assert inspect_storage(str(tmp_path / "runs"), probe) == finding
        assert len(list((tmp_path / "runs").iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_cannot_be_written_or_is_the_nodes_own_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with driver_probe(str(tmp_path / "file" / "runs")) as (probe, finding):
        assert (finding.check, finding.level, probe) == ("storage", "error", "")
    assert inspect_storage("s4://bucket/runs", "").level == "error"
    with driver_probe(str(tmp_path)) as (probe, _):
        (tmp_path / "elsewhere").mkdir()
        finding = inspect_storage(str(tmp_path / "elsewhere"), probe)
    assert finding.level == "error"
    assert "not the driver's" in finding.found


def test_a_storage_that_gives_other_bytes_back_is_an_error(tmp_path, monkeypatch):
    blocks = iter([b"a" * 8, b"b" * 8])
    monkeypatch.setattr(storage.secrets, "token_bytes", lambda _: next(blocks))
    assert storage.write_trial(str(tmp_path), "x").level == "ok"
    (tmp_path / "x").unlink()
    (tmp_path / "x").symlink_to(os.devnull)
    assert storage.write_trial(str(tmp_path), "x").level == "error"


def test_a_prepared_set_is_named_with_its_rows_and_hash(tiny_prepared):
    (finding,) = inspect_data(str(tiny_prepared.path))
    assert finding.level == "ok"
    assert "train 24, test 12 (manifest " in finding.found
    bare = str(Path(tiny_prepared.path) / "geometry")
    (finding,) = inspect_data(bare)
    assert finding.level == "error"
    assert finding.found.startswith(bare)
    assert "complete prepared set" in finding.found


def test_equal_findings_share_a_row_and_the_worst_come_first():
    good, bad = Finding("clock", "ok", "right"), Finding("clock", "error", "late", "set it")
    rows = gather({"driver": [Finding("ops", "ok", "x")], "a": [good], "b": [bad], "c": [good]})
    assert [(row.found, row.places) for row in rows] == [
        ("x", ("driver",)), ("late", ("b",)), ("right", ("a", "c")),
    ]  # fmt: skip
    table = format_table(rows, 4)
    assert [line.split() for line in table.splitlines()] == [
        ["check", "where", "found"],
        ["ops", "ok", "driver", "x"],
        ["clock", "ERROR", "b", "late"],
        ["->", "set", "it"],
        ["clock", "ok", "a,", "c", "right"],
    ]
