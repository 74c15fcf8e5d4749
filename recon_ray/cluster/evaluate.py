"""Metrics of finished models on whole splits: Ray Train workers, or this process."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import DataConfig, FailureConfig, RunConfig
from ray.train.torch import TorchConfig

from recon_ray.cluster.datasets import put_tables, read_tables
from recon_ray.cluster.failures import FailureNotes, translate_failures
from recon_ray.cluster.placement import WorkerPlan, plan_workers
from recon_ray.cluster.session import ray_session
from recon_ray.cluster.stop_watch import end_together, outcome_of, running_stop_actor
from recon_ray.cluster.train import scaling
from recon_ray.cluster.training_job import resolve_precision
from recon_ray.cluster.workarounds.ctrl_c import InterruptibleTrainer
from recon_ray.cluster.worker import set_up_worker_log, use_ops, work_in
from recon_ray.config.sections.common import ClusterSection, RuntimeSection
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.loading.batches import BatchOptions, IndexedTable
from recon_ray.data.loading.stream import SplitBlocks
from recon_ray.errors import CheckpointError
from recon_ray.machine import cpu_count, working_directory
from recon_ray.points import ops
from recon_ray.runs.folder import RunFolder
from recon_ray.train.inference import Inference
from recon_ray.train.out_of_memory import MEASURING, translate_oom
from recon_ray.train.runtime import EvaluationRuntime

logger = logging.getLogger(__name__)

#: Folder in the run's folder that Ray Train asks for; it goes again.
RAY_FOLDER = ".ray-evaluation"


class Evaluation(Protocol):
    """What is computed on whole splits."""

    def run(self, runtime: EvaluationRuntime) -> dict[str, Any]:
        """Compute it; every rank calls it, and rank 0's plain values count."""
        ...


@dataclass
class WorkerRuntime:
    """The outside of an evaluation, in any process.

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
    """Run an evaluation on every worker and give rank 0's result.

    Args:
        make_evaluation: Makes it; picklable, so it names weights and does not hold them.
        prepared: The prepared set.
        splits: Splits that it reads, whole.
        options: What a batch holds; decides the columns.
        folder: The run's folder.
        cluster: Where and on how many workers; 0 is this process. A Ray that this process has
            joined already is used.
        runtime: Device, backend, threads.

    Raises:
        ConfigError: If the workers do not fit the cluster.
        ReconError: What a worker met that the user can act on.
    """
    named = {name: (prepared, name) for name in splits}
    if cluster.workers == 0:
        torch.set_num_threads(runtime.threads or cpu_count())
        on_gpu = runtime.device != "cpu" and torch.cuda.is_available()
        device = torch.device("cuda" if on_gpu else "cpu")
        tables = read_tables(named, options.columns)
        how = _inference(runtime, on_gpu=on_gpu)
        return _run(make_evaluation, WorkerRuntime(0, 1, device, folder, tables, {}, how))
    with _session(cluster), running_stop_actor() as actor:
        plan = plan_workers(cluster, reads_during_training=False, device=runtime.device)
        payload = _Payload(
            make_evaluation=make_evaluation,
            blocks=put_tables(named, options.columns),
            folder=folder.place,
            inference=_inference(runtime, on_gpu=plan.gpus_per_worker > 0),
            ops_backend=runtime.ops_backend,
            driver_ops=ops.backend(),
            threads=runtime.threads or plan.threads_per_worker,
            stop_actor=actor,
            directory=working_directory(),
        )
        return _run_on_ray(payload, folder, cluster, plan)


@contextmanager
def _session(cluster: ClusterSection) -> Iterator[None]:
    with contextlib.nullcontext() if ray.is_initialized() else ray_session(cluster):
        yield


@dataclass(frozen=True)
class _Payload:
    """Everything a worker is given; small and picklable."""

    make_evaluation: Callable[[], Evaluation]
    blocks: Mapping[str, SplitBlocks]
    folder: str
    inference: Inference
    ops_backend: ops.BackendName
    driver_ops: str
    threads: int
    stop_actor: Any
    directory: str


def _run_on_ray(
    payload: _Payload, folder: RunFolder, cluster: ClusterSection, plan: WorkerPlan
) -> dict[str, Any]:
    trainer = InterruptibleTrainer(
        _evaluation_loop,
        train_loop_config={"payload": payload},
        torch_config=TorchConfig(timeout_s=600),
        scaling_config=scaling(cluster, plan),
        run_config=RunConfig(
            name=RAY_FOLDER,
            storage_path=folder.place,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=[FailureNotes(None)],
        ),
        dataset_config=DataConfig(datasets_to_split=[]),
    )
    try:
        with translate_failures(MEASURING):
            return dict(outcome_of(trainer.fit())["result"])
    finally:
        with contextlib.suppress(CheckpointError):
            folder.remove(RAY_FOLDER)


def _evaluation_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Entry point of a worker.

    Args:
        config: ``{"payload": _Payload}``.

    Returns:
        ``{"result": ...}`` or an error, see :func:`recon_ray.cluster.stop_watch.end_together`.
    """
    payload: _Payload = config["payload"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    set_up_worker_log(rank, show_records=False)
    torch.set_num_threads(payload.threads)
    work_in(payload.directory)
    runtime = WorkerRuntime(
        rank,
        context.get_world_size(),
        ray.train.torch.get_device(),
        RunFolder(payload.folder),
        {},
        payload.blocks,
        payload.inference,
    )

    def run() -> dict[str, Any]:
        use_ops(payload.ops_backend, payload.driver_ops)
        return {"result": _run(payload.make_evaluation, runtime)}

    return end_together(payload.stop_actor, run)


def _run(make_evaluation: Callable[[], Evaluation], runtime: EvaluationRuntime) -> dict[str, Any]:
    with torch.inference_mode(), translate_oom(runtime.device, MEASURING):
        return make_evaluation().run(runtime)


def _inference(runtime: RuntimeSection, *, on_gpu: bool) -> Inference:
    precision = resolve_precision(runtime.precision, on_gpu=on_gpu)
    return Inference(precision, runtime.compile, runtime.cuda_graph == "auto")
