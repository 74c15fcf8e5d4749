"""Workers and nodes that come and go: every sample once an epoch, every step once, and why.

Events are triggered by what a run has been seen to do, never by the clock; how long recoveries take
is measured by tests/soak, on a machine that does nothing else.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from elastic_run import ElasticRun
from local_cluster import LocalCluster

from recon_ray.config.help import dump_yaml
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.tasks.pretrain.config import PretrainConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """A head with two CPUs for a worker and one to read with; further nodes have two."""
    found = LocalCluster.start(cpus=3)
    try:
        yield found
    finally:
        found.shut_down()


@pytest.fixture
def elastic(
    cluster: LocalCluster, tiny_config: PretrainConfig, tmp_path: Path
) -> Iterator[Callable[..., ElasticRun]]:
    """Makes runs on one or two workers, with a commit a second."""
    made: list[ElasticRun] = []
    changes = {
        "run": {"storage": str(tmp_path), "name": None},
        "cluster": {
            "workers": (1, 2), "address": cluster.address, "resize_interval_seconds": 2.0,
            "cpus_per_worker": 2.0,
        },
        "train": {"epochs": 100_000, "commit_every_seconds": 1.0, "ledger": True},
        # Sums over another number of workers round differently: small steps keep that small.
        "optim": {"lr": 1e-5},
        "eval": {"enabled": False},
    }  # fmt: skip
    sections = {n: getattr(tiny_config, n).model_copy(update=new) for n, new in changes.items()}
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_yaml(tiny_config.model_copy(update=sections)))

    def make(name: str, *options: str) -> ElasticRun:
        given = (f"run.name={name}", *options)
        run = ElasticRun(cluster, config, tmp_path / name, given, samples=24, batch=8)
        made.append(run)
        return run

    yield make
    for run in made:
        run.end()


def end_undisturbed(run: ElasticRun) -> None:
    """Stop a run, let it do 50 more steps, and compare it with one that was never disturbed."""
    run.process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM to the driver after a commit at step" in run.wait(143)
    committed = run.events[-1]["step"]
    steps = f"train.steps={committed + 50}"
    run.start(steps, "cluster.workers=1").wait()
    assert run.starts[-1]["step"] == committed + 1  # nothing is done again
    assert run.step == committed + 50
    run.assert_contiguous()
    run.assert_every_sample_once()
    whole = run.alone("whole", steps)
    assert run.losses == pytest.approx(whole.losses, rel=1e-3)
    mine, theirs = (
        CheckpointStore(str(one.folder / "checkpoints")).load_latest().model for one in (run, whole)
    )
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.long
def test_a_lost_node_is_done_without(cluster, elastic):
    node = cluster.add_node(cpus=2)
    run = elastic("run", "cluster.start_timeout_seconds=5").start()
    run.until_started(1, workers=2)
    run.until_steps(10)
    cluster.remove_node(node)
    start = run.until_started(2, workers=1)
    assert start["reason"].startswith("a worker failed: rank ")
    run.until_steps(10)
    assert "training on 1 worker instead of 2," in run.log
    run.process.send_signal(signal.SIGTERM)
    run.wait(143)
    run.assert_contiguous()
    run.assert_every_sample_once()


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", ["shared", "stream", "cached"])
def test_growth_a_killed_worker_a_lost_node_and_a_drain_change_nothing(cluster, elastic, mode):
    few = 60 if mode == "shared" else 4
    run = elastic("run", f"data.mode={mode}", "data.shuffle_buffer=8").start()
    run.until_started(1, workers=1)
    run.until_steps(few)

    node = cluster.add_node(cpus=2)
    grown = run.until_started(2, workers=2)
    assert grown["reason"] == "the cluster has other resources"
    run.until_steps(few)

    os.kill(node.workers()[-1], signal.SIGKILL)
    start = run.until_started(3, workers=2)
    lost = "rank 0: it lost the connection to another worker"  # told first, now and then
    assert start["reason"].removeprefix("a worker failed: ") in ("rank 1: it died", lost)
    run.until_steps(few)

    cluster.remove_node(node)
    run.until_started(4, workers=1)
    run.until_steps(few)

    node = cluster.add_node(cpus=2)
    run.until_started(5, workers=2)
    run.until_steps(few)
    cluster.drain(node, seconds=30)
    run.until(lambda: run.events[-1]["event"] == "notice", "the notice")
    noticed = run.events[-1]["step"]
    names = CheckpointStore(str(run.folder / "checkpoints")).names
    run.until(lambda: f"step-{noticed:08d}" <= max(names()), "the commit before the end")
    run.until(lambda: run.step > noticed, "a step after the notice")
    cluster.remove_node(node, gracefully=True)
    start = run.until_started(6, workers=1)
    assert "1 of its nodes will leave" in start["reason"]
    assert start["step"] > noticed
    run.until_steps(few)
    end_undisturbed(run)


@pytest.mark.long
def test_a_killed_driver_and_a_truncated_checkpoint_cost_one_interval(elastic):
    run = elastic("run", "cluster.workers=1", "train.keep_checkpoints=4").start()
    run.until_started(1)
    store = CheckpointStore(str(run.folder / "checkpoints"))
    run.until(lambda: len(store.names()) > 1, "the second commit")
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    before, newest = store.names()[-2:]
    train = Path(store.path(newest)) / "train.pt"
    train.write_bytes(train.read_bytes()[:300])
    (Path(store.path("")) / "checkpoint_manager_snapshot.json").write_text("{")
    orphan = Path(store.path("step-99999999"))
    orphan.mkdir()
    run.start()
    start = run.until_started(2)
    assert start["reason"] == "the job was submitted again"
    assert start["step"] == int(before.removeprefix("step-")) + 1
    assert start["repeated"] > 0
    assert not orphan.exists()
    assert "is damaged (its size or SHA-256 is not the manifest's)" in run.log
    run.until_steps(20)
    end_undisturbed(run)


@pytest.mark.long
def test_an_incomplete_last_batch_is_left_out_in_every_mode_and_epoch(elastic):
    for mode in ("shared", "stream"):
        run = elastic(
            mode, f"data.mode={mode}", "data.shuffle_buffer=8", "train.global_batch_size=10",
            "cluster.workers=1", "train.steps=7",
        )  # fmt: skip
        run.batch = 10
        run.start().wait()
        run.assert_every_sample_once()  # 20 of 24, others each epoch
