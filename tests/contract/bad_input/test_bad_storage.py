"""A full disk and exhausted memory."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from job_runs import FULL, QUICK, Jobs, refuse, write_clouds

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.tasks import run_figures as figures

DRAW = figures.draw_pretraining


def test_a_full_disk_while_shards_are_written(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    clouds = write_clouds(jobs.folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        outcome = jobs.custom(clouds)
    outcome.refused(1, r"/set/.*: cannot be written \(No space left on device\); free space th")
    assert not (jobs.folder / "set" / "_manifest.json").exists()
    assert not [name for name in jobs.left_behind() if ".tmp-" in name]
    jobs.custom(clouds).done()
    PreparedSet.open(jobs.folder / "set").verify()


def test_a_full_disk_at_files_of_the_run(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Path.write_text

    def write_text(path: Path, text: str, *more: Any, **options: Any) -> int:
        if path.name.endswith(full):
            written(path, text[:10])
            raise FULL
        return written(path, text, *more, **options)

    monkeypatch.setattr(Path, "write_text", write_text)
    for full in ("config.yaml", "environment.json", "teachers.json", "result.json"):
        outcome = jobs.pretrain(*QUICK)
        outcome.refused(1, rf"run/{full}: it could not be written \(No space left on device\); fr")
        assert not [name for name in jobs.left_behind() if ".tmp-" in name or full in name]
    full = "nothing"
    jobs.pretrain(*QUICK).done()
    assert (jobs.runs / "run" / "result.json").exists()


def test_a_full_disk_at_a_checkpoint(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        outcome = jobs.pretrain(*QUICK)
    outcome.refused(1, r"/step-00000001: the checkpoint could not be written \(.*No space left on")
    run = jobs.runs / "run"
    assert not (run / "result.json").exists()
    assert list((run / "checkpoints").iterdir()) == []
    jobs.pretrain(*QUICK).done()
    records = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == [1]


def test_a_full_disk_while_metrics_are_written(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse_metrics(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        if path.name == "metrics.jsonl" and mode == "a":
            raise FULL
        return opened(path, mode, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse_metrics)
        outcome = jobs.pretrain(*QUICK)
    outcome.refused(1, r"metrics\.jsonl: the metrics could not be written \(No space left on")
    run = jobs.runs / "run"
    assert not (run / "result.json").exists()
    assert not (run / "checkpoints").exists()  # the steps and their records come again
    jobs.pretrain(*QUICK).done()


def test_a_full_disk_while_figures_are_written(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw_pretraining", DRAW)
    with monkeypatch.context() as patch:
        patch.setattr("recon_ray.tasks.run_figures.curve_figure", refuse)
        outcome = jobs.pretrain(*QUICK)
    assert outcome.status == 1
    (complaint,) = outcome.complaints()
    assert re.search(r"run/figures: a figure could not be written \(No space left", complaint)
    assert outcome.out.rstrip().endswith("run/result.json")
    assert json.loads((jobs.runs / "run" / "result.json").read_text())["status"] == "done"
    assert not (jobs.runs / "run" / "lease.json").exists()
    jobs.pretrain(*QUICK).done()
    assert (jobs.runs / "run" / "figures" / "curves.png").exists()


def _starve(*_: Any, **__: Any) -> Any:
    """Ask for more than any machine has."""
    return torch.empty(1 << 60, dtype=torch.uint8)


def _starve_gpu(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"
    )


def _starve_python(*_: Any, **__: Any) -> Any:
    raise MemoryError


@pytest.mark.parametrize(
    ("starve", "reason"),
    [
        (_starve, r".*you tried to allocate 1152921504606846976 bytes"),
        (_starve_gpu, "Tried to allocate 2.00 GiB"),
        (_starve_python, "MemoryError"),
    ],
)
def test_training_out_of_memory_names_what_to_lower(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, starve: Callable[..., Any], reason: str
) -> None:
    monkeypatch.setattr("recon_ray.train.step.one_step.Step.losses", starve)
    jobs.pretrain(*QUICK).refused(
        1,
        rf"^error: memory is exhausted \({reason}.*\); continue it with "
        r"train\.activation_checkpointing=true \(slower\), or lower train\.micro_batch_size to 4 "
        r"\(a worker holds 8 samples\), .* set data\.residency=host or data\.mode=stream",
    )


def test_an_evaluation_out_of_memory_names_what_to_lower(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, tiny_prepared: PreparedSet
) -> None:
    data = f"data.path={tiny_prepared.path}"
    jobs.finetune(data).done()
    monkeypatch.setattr("recon_ray.tasks.classify.voting.VotingEvaluation._plain", _starve)
    jobs.evaluate(data, f"init_from={jobs.runs / 'tuned'}", "run.name=measured").refused(
        1, r"^error: memory is exhausted \(.*\); lower eval\.batch_size"
    )


def test_other_errors_are_not_exhausted_memory(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("recon_ray.train.step.one_step.Step.losses", fail)
    monkeypatch.setattr("tempfile.mkstemp", refuse)  # for the traceback
    jobs.pretrain(*QUICK).refused(1, r"RuntimeError: mat1 and mat2 shapes")


def test_other_errors_on_a_full_disk(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recon_ray.data.format.prepared.PreparedSet.open", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    outcome = jobs.pretrain()
    outcome.refused(1, r"^error: ZeroDivisionError: .* \(traceback shown with RECON_DEBUG=1\)")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_is_really_full(jobs: Jobs, small_disk: Path) -> None:
    outcome = jobs.pretrain(f"run.storage={small_disk}", *QUICK)
    outcome.refused(1, r"disk/run/checkpoints/step-00000001: the checkpoint could not be written")
    assert not [path for path in small_disk.rglob("*") if ".tmp-" in path.name]
    assert not (small_disk / "run" / "result.json").exists()
    shutil.rmtree(small_disk / "run")
    clouds = write_clouds(jobs.folder, 60)
    outcome = jobs.custom(
        clouds, f"output={small_disk / 'set'}", "prepare.samples_per_shard=30",
        "prepare.num_points=80", "prepare.test_fraction=0", "prepare.views=4",
    )  # fmt: skip
    outcome.refused(1, r"disk/set/.*: cannot be written \(No space left on device\); free space")
    assert not [path for path in small_disk.rglob("*") if ".tmp-" in path.name]
    assert not (small_disk / "set" / "_manifest.json").exists()


@pytest.mark.parametrize(
    ("job", "option", "message"),
    [
        (
            "prepare",
            "output=zz://bucket/set",
            r"zz://bucket/set: cannot be reached \(.*zz\); check",
        ),
        ("prepare", "output=s3:/bucket/set", r"s3:/bucket/set: this looks like a URI with a slash"),
        ("prepare", "verify=zz://bucket/set", r"zz://bucket/set/.*: cannot be reached"),
        ("pretrain", "data.path=zz://bucket/set", r"data\.path=zz://bucket/set: cannot be reached"),
        ("embed", "files=[s3://bucket/a.npy]", r"read from a disk only; give a path, not a URI"),
    ],
)
def test_a_place_that_is_no_store_is_refused_and_no_folder_is_made(
    jobs: Jobs, tmp_path, monkeypatch, job, option, message
):
    monkeypatch.chdir(tmp_path)
    jobs.run(job, option, "cluster.workers=0").refused(2, message)
    assert [path.name for path in tmp_path.iterdir() if ":" in path.name] == []
