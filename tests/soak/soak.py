"""A long run under random faults, compared with an undisturbed one.

``python tests/soak/soak.py [--minutes 20] [--seed 0] [--mode shared] [--fixed] [--folder F]``

A cluster of one to three nodes on this machine pre-trains a small model while, in an order drawn
from the seed, workers and drivers are killed, nodes are added, removed and drained, checkpoints are
truncated, and the storage is slow or full. Then the run is ended and compared with one that was not
disturbed:

* every sample was used once in every epoch (``ledger.parquet``), every step recorded once;
* with ``--fixed`` (always two workers) the final weights are the same, bit for bit; without it the
  number of workers changes, sums round differently, and the weights have to lie close together.

Not a part of the test suite; it takes the given minutes and about half as many again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "integration"), str(TESTS.parent)]

from elastic_run import ElasticRun  # noqa: E402
from local_cluster import LocalCluster, Node  # noqa: E402

from recon_ray.config.help import dump_yaml  # noqa: E402
from recon_ray.data.prepare.build_set import prepare  # noqa: E402
from recon_ray.data.prepare.shard_plan import PrepareOptions  # noqa: E402
from recon_ray.data.sources.procedural.synthetic import SyntheticSource  # noqa: E402
from recon_ray.runs.checkpoint import CheckpointStore  # noqa: E402
from recon_ray.tasks.pretrain.config import PretrainConfig  # noqa: E402

FAULTS = Path(__file__).with_name("faults")
PER_CLASS, CLASSES, BATCH = 45, ("chair", "lamp", "mug"), 16
#: Training between two events, in seconds.
PAUSE = (4.0, 15.0)
#: Longest median recovery, in seconds, on an otherwise idle machine.
PROMISED = {"kill_worker": 30, "remove_node": 60}
#: Largest distance to the undisturbed weights, relative to their distance from the start.
CLOSE = 0.1


@dataclass(frozen=True)
class Happened:
    """One event and its effect on the run."""

    second: float
    event: str
    step: int
    workers: int
    recovery_seconds: float | None
    repeated: int
    reason: str


class Soak:
    """Disturbs a run until the time is up.

    Args:
        folder: Folder of the run, its data and the results.
        seed: Seed of the order of events.
        mode: ``data.mode``.
        fixed: Always two workers.
    """

    def __init__(self, folder: Path, *, seed: int, mode: str, fixed: bool) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.fixed = fixed
        self.fault = folder / "fault"
        os.environ["PYTHONPATH"] = os.pathsep.join([str(FAULTS), str(TESTS.parent)])
        os.environ["RECON_SOAK_FAULT"] = str(self.fault)
        self.cluster = LocalCluster.start(cpus=3)
        options = ("run.name=run", f"data.mode={mode}", "data.shuffle_buffer=32")
        self.run = ElasticRun(
            self.cluster, write_config(folder, self.cluster, fixed), folder / "run", options,
            samples=PER_CLASS * len(CLASSES), batch=BATCH,
        )  # fmt: skip
        self.happened: list[Happened] = []
        self.began = time.monotonic()

    # -- events: each returns whether the workers have to start again -----------------------------

    def kill_worker(self) -> bool:
        pids = [pid for node in self.cluster.nodes for pid in node.workers()]
        os.kill(self.random.choice(pids), signal.SIGKILL)
        return True

    def kill_driver(self) -> bool:
        self.run.process.send_signal(signal.SIGKILL)
        self.run.process.wait()
        self.run.start()
        return True

    def stop_driver(self) -> bool:
        self.run.process.send_signal(signal.SIGTERM)
        self.run.wait(143, 120)
        self.run.start()
        return True

    def add_node(self) -> bool:
        self.cluster.add_node(cpus=2)
        return self.workers < 2

    def remove_node(self) -> bool:
        node = self.some_node()
        used = bool(node.workers())
        self.cluster.remove_node(node)
        if self.fixed and used:
            self.cluster.add_node(cpus=2)
        return used

    def drain_node(self) -> bool:
        node = self.some_node()
        used = bool(node.workers())
        notices = len([e for e in self.run.events if e["event"] == "notice"])
        self.cluster.drain(node, seconds=5)
        if used:
            self.run.until(
                lambda: len([e for e in self.run.events if e["event"] == "notice"]) > notices,
                "the notice of a drain", 60,
            )  # fmt: skip
            self.run.until(lambda: self.newest >= self.run.events[-1]["step"], "its commit", 60)
        self.cluster.remove_node(node, gracefully=True)
        if self.fixed and used:
            self.cluster.add_node(cpus=2)
        return used

    def truncate_checkpoint(self) -> bool:
        """Truncate the newest checkpoint, and make the run need it."""
        store = CheckpointStore(str(self.run.folder / "checkpoints"))
        self.run.until(lambda: len(store.names()) > 1, "two checkpoints")
        self.run.process.send_signal(signal.SIGKILL)
        self.run.process.wait()
        time.sleep(2)  # the workers go with it
        file = Path(store.path(store.names()[-1])) / self.random.choice(["model.pt", "train.pt"])
        file.write_bytes(file.read_bytes()[:1000])
        self.run.start()
        return True

    def full_disk(self) -> bool:
        """Fill the disk until the run has ended with its one sentence."""
        self.fault.write_text("full")
        log = self.run.wait(1, 120)
        assert "free space or choose another run.storage" in log.splitlines()[-1], log
        self.fault.unlink()
        self.run.start()
        return True

    def slow_storage(self) -> bool:
        """Delay every file by two seconds, until a commit is done."""
        before = self.newest
        self.fault.write_text("slow 2")
        self.run.until(lambda: self.newest > before, "a slow commit", 120)
        self.fault.unlink()
        return False

    # -- course of the run ------------------------------------------------------------------------

    @property
    def workers(self) -> int:
        return int(self.run.starts[-1]["workers"])

    @property
    def newest(self) -> int:
        names = CheckpointStore(str(self.run.folder / "checkpoints")).names()
        return int(names[-1].removeprefix("step-")) if names else 0

    def some_node(self) -> Node:
        return self.random.choice(self.cluster.nodes[1:])

    def possible(self) -> list[Callable[[], bool]]:
        """Return the events that are possible now; an event that is listed twice is likelier."""
        always = [self.kill_worker, self.kill_driver, self.stop_driver, self.slow_storage]
        always += [self.truncate_checkpoint, self.full_disk]
        extra = len(self.cluster.nodes) - 1
        added = [self.add_node] * 3 if extra < 2 else []
        removed = [self.remove_node, self.drain_node] * 2 if extra else []
        return [*always, *added, *removed]

    def disturb(self, minutes: float) -> None:
        """Trigger events for ``minutes``, each kind at least once if there is time."""
        if self.fixed:
            self.cluster.add_node(cpus=2)
        self.run.start()
        self.run.until_started(1)
        never = {e.__name__ for e in (*self.possible(), self.remove_node, self.drain_node)}
        while time.monotonic() - self.began < 60 * minutes:
            self.train_for(self.random.uniform(*PAUSE))
            possible = self.possible()
            wanted = [event for event in possible if event.__name__ in never] or possible
            event = self.random.choice(wanted)
            never.discard(event.__name__)
            self.observe(event)

    def train_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        step = self.run.step
        self.run.until(lambda: time.monotonic() > until and self.run.step > step, "progress", 300)

    def observe(self, event: Callable[[], bool]) -> None:
        """Trigger one event and wait until the run trains again."""
        count, step, at = len(self.run.starts), self.run.step, time.monotonic()
        restarts = event()
        recovery, start = None, {}
        if restarts:
            start = self.run.until_started(count + 1)
            recovery = round(time.monotonic() - at, 1)
        restart = (start.get("repeated", 0), start.get("reason", ""))
        second = round(at - self.began, 1)
        self.happened.append(
            Happened(second, event.__name__, step, self.workers, recovery, *restart)
        )
        say(" ".join(f"{key}={value}" for key, value in asdict(self.happened[-1]).items()))

    def finish(self) -> dict[str, float]:
        """End the run, repeat it undisturbed, and compare the two."""
        self.run.process.send_signal(signal.SIGTERM)
        self.run.wait(143)
        steps = f"train.steps={self.run.events[-1]['step'] + 20}"
        self.run.start(steps).wait(0, 600)
        self.run.assert_contiguous()
        self.run.assert_every_sample_once()
        say(f"{self.run.step} steps, each once; every sample once an epoch")
        began = time.monotonic()
        if self.fixed:  # the same number of workers
            other = ElasticRun(
                self.cluster, self.run.config, self.folder / "whole",
                (*self.run.options, "run.name=whole", steps), self.run.samples, BATCH,
            )  # fmt: skip
            other.start().wait(0, 3600)
        else:
            options = (steps, "train.commit_every_seconds=60")
            other = self.run.alone("whole", *options, seconds=3600)
        other.assert_every_sample_once()
        say(f"the undisturbed run took {time.monotonic() - began:.0f} s")
        return compare(self.run, other, self.fixed)


def write_config(folder: Path, cluster: LocalCluster, fixed: bool) -> Path:
    source = SyntheticSource(train_per_class=PER_CLASS, test_per_class=4, categories=CLASSES)
    options = PrepareOptions(num_points=256, views=1, image_size=32, samples_per_shard=20)
    prepare(source, folder / "set", options)
    config = PretrainConfig(
        run={"storage": str(folder), "seed": 3},
        cluster={
            "workers": 2 if fixed else (1, 2), "address": cluster.address, "cpus_per_worker": 2.0,
            "resize_interval_seconds": 5.0, "max_failures": -1,
        },
        runtime={"threads": 1},
        data={"path": str(folder / "set"), "num_points": 256},
        model={"preset": "nano", "num_groups": 16, "group_size": 16},
        teacher={"image": {"name": "descriptor:32"}, "text": {"name": "descriptor:32"}},
        train={
            "epochs": 100_000, "global_batch_size": BATCH, "log_every_steps": 1, "ledger": True,
            "commit_every_seconds": 5.0, "keep_checkpoints": 5, "keep_every_steps": 500,
        },
        optim={"lr": 1e-5, "warmup_epochs": 1},
        eval={"enabled": False},
    )  # fmt: skip
    path = folder / "soak.yaml"
    path.write_text(dump_yaml(config))
    return path


def compare(run: ElasticRun, other: ElasticRun, fixed: bool) -> dict[str, float]:
    """Return the distance of weights and losses to those of the undisturbed run."""

    def weights(one: ElasticRun) -> dict:
        return CheckpointStore(str(one.folder / "checkpoints")).load_latest().model

    def distance(a: dict, b: dict) -> float:
        floats = [name for name in b if b[name].is_floating_point()]
        return float(sum(((a[n] - b[n]).double() ** 2).sum() for n in floats)) ** 0.5

    start = run.alone("start", "train.steps=1")
    mine, theirs, first = weights(run), weights(other), weights(start)
    ours, undisturbed = run.losses, other.losses
    assert ours.keys() == undisturbed.keys()
    apart, way = distance(mine, theirs), distance(theirs, first)
    losses = [abs(ours[step] - loss) / loss for step, loss in undisturbed.items()]
    found = {
        "weights_apart": apart, "weights_way": way, "weights_apart_part_of_way": apart / way,
        "loss_apart_most": max(losses),
    }  # fmt: skip
    say(" ".join(f"{name}={value:.3g}" for name, value in found.items()))
    if fixed:
        assert apart == 0, "the weights are not the same"
        assert ours == undisturbed, "the losses are not the same"
    else:
        assert apart / way < CLOSE, "the weights are too far apart"
    return found


def slow_recoveries(happened: list[Happened]) -> str:
    """Name the events whose median recovery took longer than promised."""
    slow = []
    for event, promised in PROMISED.items():
        all_of = [h for h in happened if h.event == event]
        took = sorted(h.recovery_seconds for h in all_of if h.recovery_seconds is not None)
        if took and took[len(took) // 2] > promised:
            slow.append(f"{event} {took[len(took) // 2]} s (promised: {promised})")
    return ", ".join(slow)


def table(happened: list[Happened]) -> str:
    """Return the events as a Markdown table, and the slowest recovery of each kind."""
    lines = ["| second | event | step | workers after | recovery, s | steps again | reason |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    lines += [
        f"| {h.second:.0f} | {h.event} | {h.step} | {h.workers} | "
        f"{'-' if h.recovery_seconds is None else h.recovery_seconds} | {h.repeated} | {h.reason} |"
        for h in happened
    ]
    lines += ["", "| event | times | recovery, s: median | most |", "| --- | --- | --- | --- |"]
    for event in sorted({h.event for h in happened}):
        all_of = [h for h in happened if h.event == event]
        took = sorted(h.recovery_seconds for h in all_of if h.recovery_seconds is not None)
        shown = f"{took[len(took) // 2]} | {took[-1]}" if took else "- | -"
        lines.append(f"| {event} | {len(all_of)} | {shown} |")
    return "\n".join(lines)


def say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=None, help="by default another one each time")
    parser.add_argument("--mode", choices=("shared", "stream", "cached"), default="shared")
    parser.add_argument("--fixed", action="store_true", help="always two workers: equal weights")
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    folder = options.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    say(f"seed {seed}, {options.minutes:g} minutes, data.mode={options.mode}, in {folder}")
    soak = Soak(folder, seed=seed, mode=options.mode, fixed=options.fixed)
    result: dict[str, object] = {"seed": seed, "minutes": options.minutes, "mode": options.mode}
    try:
        soak.disturb(options.minutes)
        result |= {"final": soak.finish(), "steps": soak.run.step}
        slow = slow_recoveries(soak.happened)
        result |= {"passed": not slow, "failure": slow}
        if slow:
            say(f"FAILED: recovered too slowly: {slow}")
    except (AssertionError, subprocess.TimeoutExpired) as error:
        result |= {"passed": False, "failure": str(error)[-4000:]}
        say(f"FAILED: {str(error)[-4000:]}")
    finally:
        soak.run.end()
        soak.cluster.shut_down()
        (folder / "events.md").write_text(table(soak.happened) + "\n")
        result["events"] = [asdict(h) for h in soak.happened]
        (folder / "soak.json").write_text(json.dumps(result, indent=2) + "\n")
    say(f"{folder}/events.md")
    sys.stdout.write(table(soak.happened) + "\n")
    return 0 if result.get("passed") else 1


if __name__ == "__main__":
    sys.exit(main())
