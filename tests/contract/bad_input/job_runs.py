"""Jobs run in this process, how they end, and damage done to what they read.

Bad input as a user gives it: one clear sentence, the exit status, and nothing half-written.
Status 2: the configuration or the arguments are wrong; 1: anything else; 130: interrupted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any

import data_samples
import pytest

from recon_ray.cli import run_job

ROOT = Path(__file__).resolve().parents[3]
QUICK = ("eval.enabled=false", "train.steps=1")
FULL = OSError(errno.ENOSPC, "No space left on device")


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    status: int
    out: str
    err: str

    def complaints(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]

    def refused(self, status: int, message: str) -> None:
        """Check the status, one sentence that matches, and no traceback."""
        assert "Traceback" not in self.err
        assert len(self.complaints()) == 1, self.err
        assert self.err.rstrip().splitlines()[-1] == self.complaints()[0]
        assert re.search(message, self.complaints()[0]), self.complaints()[0]
        assert self.status == status
        assert self.out == ""

    def done(self) -> str:
        assert self.status == 0, self.err
        assert self.complaints() == []
        return self.err


TINY = (
    "run.name=tuned", "model.preset=nano", "model.embed_dim=24", "model.depth=2",
    "model.num_heads=2", "model.num_groups=8", "model.group_size=8", "data.num_points=64",
    "train.steps=1", "train.global_batch_size=8", "cluster.workers=0", "runtime.threads=1",
)  # fmt: skip
DOWNSTREAM = ("run.name=down", "cluster.workers=0", "data.num_points=64")
GIVEN: dict[str, tuple[str, ...]] = {  # a job's options besides the storage of its runs
    "prepare": ("run.name=prepare",),
    "import_weights": (),
    "finetune": TINY,
    "evaluate": ("cluster.workers=0", "runtime.threads=1"),
    "visualize": ("run.name=pictures",),
    "sweep": ("run.name=sweep", "cluster.workers=0"),  # of a fine-tuning
    "fewshot": ("run.name=few",),
    "reproduce": ("run.name=table", "cluster.workers=0"),
    "cache_teachers": (
        "run.name=teachers", "cluster.workers=0", "teacher.image.name=descriptor:32",
        "teacher.text.name=null", "teacher.image.augment=none",
    ),
    **dict.fromkeys(("zeroshot", "linear_probe", "partseg", "embed", "retrieve"), DOWNSTREAM),
}  # fmt: skip


@dataclass(frozen=True)
class Jobs:
    """Jobs run in this process, in a folder of their own."""

    folder: Path
    config: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def run(self, job: str, *arguments: object) -> Outcome:
        """Run a job with its options in ``GIVEN``; an argument after them takes precedence."""
        given = [str(self.config)] if job == "pretrain" else [f"run.storage={self.runs}"]
        status = run_job(job, [*given, *GIVEN.get(job, ()), *map(str, arguments)])
        out, err = self.capsys.readouterr()
        return Outcome(status, out, err)

    pretrain = partialmethod(run, "pretrain")
    prepare = partialmethod(run, "prepare")
    finetune = partialmethod(run, "finetune")
    evaluate = partialmethod(run, "evaluate")
    sweep = partialmethod(run, "sweep")
    fewshot = partialmethod(run, "fewshot")
    reproduce = partialmethod(run, "reproduce")
    cache_teachers = partialmethod(run, "cache_teachers")

    def custom(self, source: Path, *arguments: object) -> Outcome:
        """Prepare a folder of clouds, in this process, to ``set``."""
        return self.prepare(
            "source=custom", f"input={source}", f"output={self.folder / 'set'}",
            "prepare.num_points=64", "prepare.views=0", "prepare.processes=1", *arguments,
        )  # fmt: skip

    def left_behind(self) -> list[str]:
        """List the files in the storage, and temporary ones anywhere."""
        files = [path for path in self.runs.rglob("*") if path.is_file()]
        temporary = [path for path in self.folder.rglob("*") if ".tmp-" in path.name]
        return [str(path.relative_to(self.folder)) for path in (*files, *temporary)]


def file_tree(folder: Path) -> dict[str, str]:
    """Hash every file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def first_shard(root: Path, kind: str = "geometry", split: str = "train") -> Path:
    return sorted((root / kind / split).glob("*.parquet"))[0]


def change_manifest(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((root / "_manifest.json").read_text())
    change(manifest)
    (root / "_manifest.json").write_text(json.dumps(manifest))


def prepare_again(root: Path) -> None:
    """Leave what a second preparation with other options leaves at the same place."""
    change_manifest(root, lambda manifest: manifest.update(seed=manifest["seed"] + 1))


def write_clouds(folder: Path, count: int = 12) -> Path:
    """Write a folder of clouds in two classes."""
    names = [f"{'ab'[seed % 2]}/{seed:02d}" for seed in range(count)]
    data_samples.write_clouds(folder / "clouds", names)
    return folder / "clouds"


def quarantined(folder: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (folder / "_quarantine.jsonl").read_text().splitlines()))


def refuse(*_: object, **__: object) -> None:
    raise FULL
