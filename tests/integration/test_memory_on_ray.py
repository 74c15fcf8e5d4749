"""A worker that runs out of memory ends a run of several workers at once."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from typing import Any

import pytest
import ray.train
import torch
from ray import cloudpickle

from recon_ray.cluster.placement import plan_workers
from recon_ray.cluster.session import ray_session
from recon_ray.cluster.train import run_workers
from recon_ray.cluster.worker import train_loop
from recon_ray.config.sections.common import ClusterSection
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import OutOfMemoryError
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.pretrain.job import make_task, training_job
from recon_ray.tasks.run import start_run
from recon_ray.train.step.one_step import Step

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]
# The workers cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def starved_loop(config: dict[str, Any], hungry: tuple[int, ...]) -> dict[str, Any]:
    """The usual loop, in which the third step of some workers asks for too much."""
    if ray.train.get_context().get_world_rank() in hungry:
        losses, steps = Step.losses, iter(range(1, 9))

        def starved(step: Step, *arguments: Any) -> Any:
            if next(steps) == 3:
                torch.empty(1 << 60, dtype=torch.uint8)
            return losses(step, *arguments)

        Step.losses = starved
    return train_loop(config)


@pytest.mark.parametrize(
    ("hungry", "noted"), [((0, 1), []), ((1,), ["failed"])], ids=["all", "one"]
)
def test_the_other_workers_do_not_wait_and_nothing_is_tried_again(
    tiny_config: PretrainConfig,
    tiny_prepared: PreparedSet,
    hungry: tuple[int, ...],
    noted: list[str],
) -> None:
    """An error of all workers is printed without a line of Ray's."""
    cluster = ClusterSection(workers=2, cpus_per_worker=0.5)
    config = tiny_config.model_copy(
        update={"cluster": cluster, "eval": tiny_config.eval.model_copy(update={"enabled": False})}
    )
    run = start_run("pretrain", config, label="test")
    job = training_job(run, config, tiny_prepared, make_task(config, tiny_prepared))
    with ray_session(cluster, show_workers=False):
        plan = plan_workers(cluster, reads_during_training=False, device="cpu")
        began = time.monotonic()
        with pytest.raises(
            OutOfMemoryError,
            match=r"^memory is exhausted .*=true \(slower\), or lower train\.micro_batch_size to 2",
        ):
            run_workers(partial(starved_loop, hungry=hungry), job, cluster, plan, "shared")
        assert time.monotonic() - began < 120  # the others would wait for ten minutes
    events = map(json.loads, (run.folder.read("events.jsonl") or "").splitlines())
    assert [event["event"] for event in events] == ["submitted", "trains", *noted]
