"""Metrics of finished models on whole splits: on the workers of Ray Train, or in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray.train
import ray.train.torch
import torch

from recon_ray.cluster.datasets import SplitBlocks, put_tables, read_tables
from recon_ray.cluster.failures import FailureNotes, translate_failures
from recon_ray.cluster.placement import plan_workers
from recon_ray.cluster.session import ray_session
from recon_ray.cluster.stop_watch import outcome_of, running_stop_actor
from recon_ray.cluster.train import make_trainer
from recon_ray.cluster.training_job import resolve_precision
from recon_ray.cluster.worker import WorkerSetup
from recon_ray.config.sections.common import ClusterSection, RuntimeSection
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.loading.batches import BatchOptions, IndexedTable
from recon_ray.errors import CheckpointError
from recon_ray.machine import cpu_count
from recon_ray.runs.folder import RunFolder
from recon_ray.train.inference import Inference
from recon_ray.train.out_of_memory import MEASURING, translate_oom
from recon_ray.train.runtime import EvaluationRuntime

#: Ray Train's own folder in the run's folder, for the duration of the evaluation.
RAY_FOLDER = ".ray-evaluation"


class Evaluation(Protocol):
    """A computation on whole splits."""

    def run(self, runtime: EvaluationRuntime) -> dict[str, Any]:
        """Return its result as plain values; every rank calls it, rank 0's result counts."""
        ...


@dataclass
class WorkerRuntime:
    """Runtime interface of an evaluation, in any process.

    Attributes:
        rank: This worker.
        world_size: Number of workers.
        device: Where the model runs.
        folder: The run's folder.
        tables: Splits that have been read, by name.
        blocks: Splits in the object store, by name.
        inference: How models are evaluated.
    """

    rank: int
    world_size: int
    device: torch.device
    folder: RunFolder
    tables: dict[str, IndexedTable]
    blocks: Mapping[str, SplitBlocks]
    inference: Inference

    def table(self, split: str) -> IndexedTable:
        """Return all rows of a split."""
        if split not in self.tables:
            self.tables[split] = self.blocks[split].fetch()
        return self.tables[split]


def evaluate(
    make_evaluation: Callable[[], Evaluation],
    prepared: PreparedSet,
    splits: Sequence[str],
    *,
    options: BatchOptions,
    folder: RunFolder,
    cluster: ClusterSection,
    runtime: RuntimeSection,
) -> dict[str, Any]:
    """Run an evaluation on every worker and return rank 0's result.

    Args:
        make_evaluation: Returns it; picklable, so it names weights and does not hold them.
        prepared: The prepared set.
        splits: Splits that it reads, whole.
        options: What a batch holds; decides the columns.
        folder: The run's folder.
        cluster: Where and on how many workers; 0 is this process. A cluster that this process has
            joined already is used.
        runtime: Device, backend, threads.

    Raises:
        ConfigError: If the workers do not fit the cluster.
        ReconError: An error of a worker that the user can act on.
    """
    named = {name: (prepared, name) for name in splits}
    if cluster.workers == 0:
        torch.set_num_threads(runtime.threads or cpu_count())
        on_gpu = runtime.device != "cpu" and torch.cuda.is_available()
        device = torch.device("cuda" if on_gpu else "cpu")
        tables = read_tables(named, options.columns)
        how = _inference(runtime, on_gpu=on_gpu)
        return _run(make_evaluation, WorkerRuntime(0, 1, device, folder, tables, {}, how))
    with ray_session(cluster), running_stop_actor() as actor:
        plan = plan_workers(cluster, reads_during_training=False, device=runtime.device)
        payload = _Payload(
            make_evaluation,
            put_tables(named, options.columns),
            folder,
            _inference(runtime, on_gpu=plan.gpus_per_worker > 0),
            WorkerSetup.of_driver(actor, runtime, plan),
        )
        trainer = make_trainer(
            _evaluation_loop, payload, cluster, plan,
            name=RAY_FOLDER, storage=folder.place, notes=FailureNotes(None), datasets={},
        )  # fmt: skip
        try:
            with translate_failures(MEASURING):
                return dict(outcome_of(trainer.fit())["result"])
        finally:
            with contextlib.suppress(CheckpointError):
                folder.remove(RAY_FOLDER)


@dataclass(frozen=True)
class _Payload:
    """Everything a worker is given; small and picklable."""

    make_evaluation: Callable[[], Evaluation]
    blocks: Mapping[str, SplitBlocks]
    folder: RunFolder
    inference: Inference
    setup: WorkerSetup


def _evaluation_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Evaluate in a worker: its entry point.

    Args:
        config: ``{"payload": _Payload}``.

    Returns:
        ``{"result": ...}`` or an error, see :func:`recon_ray.cluster.stop_watch.end_together`.
    """
    payload: _Payload = config["payload"]

    def work() -> dict[str, Any]:
        context, device = ray.train.get_context(), ray.train.torch.get_device()
        runtime = WorkerRuntime(
            context.get_world_rank(), context.get_world_size(), device,
            payload.folder, {}, payload.blocks, payload.inference,
        )  # fmt: skip
        return {"result": _run(payload.make_evaluation, runtime)}

    return payload.setup.run(work)


def _run(make_evaluation: Callable[[], Evaluation], runtime: EvaluationRuntime) -> dict[str, Any]:
    with torch.inference_mode(), translate_oom(runtime.device, MEASURING):
        return make_evaluation().run(runtime)


def _inference(runtime: RuntimeSection, *, on_gpu: bool) -> Inference:
    precision = resolve_precision(runtime.precision, on_gpu=on_gpu)
    return Inference(precision, runtime.compile, runtime.cuda_graph == "auto")
