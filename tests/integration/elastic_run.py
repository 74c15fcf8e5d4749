"""A run of jobs/pretrain.py on a cluster that a test disturbs while it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from local_cluster import LocalCluster

ROOT = Path(__file__).resolve().parents[2]
JOB = str(ROOT / "jobs" / "pretrain.py")


@dataclass
class ElasticRun:
    """One run, in as many attempts as it takes.

    Args:
        cluster: Where it runs.
        config: Its configuration.
        folder: Its folder.
        options: Options of all attempts.
        samples: Samples of the training split.
        batch: Its global batch.
    """

    cluster: LocalCluster
    config: Path
    folder: Path
    options: tuple[str, ...]
    samples: int
    batch: int
    process: subprocess.Popen | None = None

    def start(self, *options: str) -> ElasticRun:
        """Start it, or start it again."""
        with self.folder.with_suffix(".log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, JOB, str(self.config), *self.options, *options],
                env=self.cluster.environment, cwd=self.config.parent, stdout=log, stderr=log,
            )  # fmt: skip
        return self

    def alone(self, name: str, *options: str, seconds: float = 240) -> ElasticRun:
        """Run the same in one process that nobody disturbs, to its end."""
        more = [f"run.name={name}", "cluster.workers=0", *options]
        other = ElasticRun(
            self.cluster, self.config, self.folder.with_name(name), (*self.options, *more),
            self.samples, self.batch,
        )  # fmt: skip
        other.start().wait(seconds=seconds)
        return other

    def wait(self, status: int = 0, seconds: float = 240) -> str:
        """Wait for its end and give its log."""
        assert self.process is not None
        try:
            self.process.wait(seconds)
        finally:
            self.process.kill()
        assert self.process.returncode == status, f"exit {self.process.returncode}\n{self.log}"
        return self.log

    def end(self) -> None:
        """Leave no process behind."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        """What it has printed, in all of its attempts."""
        return self.folder.with_suffix(".log").read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The run's journal."""
        return self._lines("events.jsonl")

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Every time that it began to train."""
        return [event for event in self.events if event["event"] == "trains"]

    @property
    def losses(self) -> dict[int, float]:
        """Step to loss."""
        return {
            r["step"]: r["train/loss"] for r in self._lines("metrics.jsonl") if "train/loss" in r
        }

    @property
    def step(self) -> int:
        """The last step that is recorded."""
        return max(self.losses, default=0)

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """Whole lines of a file only: the last may still be being written."""
        try:
            lines = (self.folder / name).read_text().split("\n")[:-1]
        except OSError:
            return []
        return [json.loads(line) for line in lines]

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 180) -> None:
        """Wait for something to be observed."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if condition():
                return
            assert self.process is not None
            assert self.process.poll() is None, f"ended before {what}\n{self.log}"
            time.sleep(0.1)
        raise AssertionError(f"waited in vain for {what}\n{self.log}")

    def until_steps(self, count: int) -> None:
        """Wait for further steps of the workers that train now."""
        target = self.starts[-1]["step"] + count
        self.until(lambda: self.step >= target, f"step {target}")

    def until_started(self, count: int, workers: int | None = None) -> dict[str, Any]:
        """Wait for a number of starts of the training, the last one with a number of workers."""

        def reached() -> bool:
            starts = self.starts
            return len(starts) >= count and workers in (None, starts[-1]["workers"])

        self.until(reached, f"start {count} with {workers} workers")
        return self.starts[-1]

    def assert_contiguous(self) -> None:
        """Every step is recorded once, in order."""
        steps = [r["step"] for r in self._lines("metrics.jsonl") if "train/loss" in r]
        assert steps == list(range(1, len(steps) + 1))

    def assert_every_sample_once(self) -> None:
        """No sample twice in an epoch, and in all but the last one as many as fill batches."""
        table = pq.read_table(self.folder / "ledger.parquet")
        assert set(table["uses"].to_pylist()) == {1}
        epochs: dict[int, list[int]] = {}
        for epoch, sample in zip(
            *(table[n].to_pylist() for n in ("epoch", "sample_id")), strict=True
        ):
            epochs.setdefault(epoch, []).append(sample)
        assert all(len(ids) == len(set(ids)) for ids in epochs.values())
        used = [len(ids) for _, ids in sorted(epochs.items())]
        whole = self.samples // self.batch * self.batch
        assert sorted(epochs) == list(range(len(epochs)))
        assert used[:-1] == [whole] * (len(used) - 1)
        assert sum(used) == self.step * self.batch
