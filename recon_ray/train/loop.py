"""The one training loop of every task.

It is a function of the task, the settings and the newest valid checkpoint: random numbers come from
(seed, epoch, sample) and, for dropout, (seed, step, rank), the order of samples from (seed, epoch).
These few integers are the whole state of the generators, so an interrupted run that continues does
the same steps as one that was never interrupted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recon_ray.data.loading.batches import Batch
from recon_ray.data.loading.prefetch import prefetch_batches
from recon_ray.data.loading.stream_order import StreamLayout
from recon_ray.errors import CheckpointError, StoppedError
from recon_ray.models.batch_norm import (
    largest_initial_part,
    set_first_average,
    set_sync_batch_norm,
)
from recon_ray.models.cloud import set_activation_checkpointing
from recon_ray.runs.checkpoint import OPTIMIZER, Packed, load_model_state, pack
from recon_ray.runs.journal import Journal, explain_restart, last_record
from recon_ray.runs.recorder import Recorder
from recon_ray.storage import join
from recon_ray.train.commits import Commits, raise_on_all_ranks
from recon_ray.train.feed.batching import BatchPlan, steps_per_epoch
from recon_ray.train.metrics import is_distributed, peak_memory_bytes
from recon_ray.train.optim import CosineSchedule, load_optimizer, stored_optimizer
from recon_ray.train.out_of_memory import training_advice, translate_oom
from recon_ray.train.rank_zero_barrier import rank_zero_barrier
from recon_ray.train.records import TrainRecords
from recon_ray.train.runtime import Runtime
from recon_ray.train.sample_ledger import SampleLedger, write_ledger
from recon_ray.train.settings import FitSettings
from recon_ray.train.state import (
    INTERVAL,
    STREAM,
    Progress,
    SampleOrder,
    newest_checkpoint,
    restored,
)
from recon_ray.train.step.one_step import Step, wants_graph
from recon_ray.train.step.step_timer import StepClock
from recon_ray.train.task import Task

logger = logging.getLogger(__name__)

#: Part of a running variance that may be its initial value without a warning.
MOST_INITIAL_PART = 0.1


def take_step(step: Step, batch: Batch, epoch: int | Tensor) -> None:
    """Take one optimizer step on this worker's share of a global batch.

    :class:`~recon_ray.train.step.one_step.Step` runs it eagerly, compiled, or as one CUDA graph.
    """
    train = step.settings.config.train
    for micro, weight, exchanges in step.micro_batches(batch):  # (b, ...) of (B / workers, ...)
        with step.gradient_exchange(enabled=exchanges):
            losses = step.losses(micro, epoch)  # name to ()
            (losses["loss"] * weight).backward()
        step.collect(losses, len(micro["sample_id"]))
    step.exchange_gradients()
    if step.settings.double_step:
        step.optimizer.step()
    if train.clip_norm is not None:
        nn.utils.clip_grad_norm_(step.module.parameters(), train.clip_norm)
    step.optimizer.step()
    step.optimizer.zero_grad(set_to_none=True)


class Trainer:
    """Training of one task, on one worker."""

    def __init__(self, task: Task, runtime: Runtime, settings: FitSettings) -> None:
        self.task, self.runtime, self.settings = task, runtime, settings
        self.config = config = settings.config
        size = config.train.global_batch_size
        self.plan = BatchPlan(size, runtime.world_size, config.train.micro_batch_size)
        self.feed = runtime.feed()
        self.order = SampleOrder(
            self.feed.rows, settings.training_set, config.run.seed, global_batch_size=size
        )
        self.steps_per_epoch = steps_per_epoch(self.feed.rows, size)
        self.max_steps = settings.total_steps(self.steps_per_epoch)
        self.schedule = CosineSchedule(
            config.train.epochs,
            config.optim.warmup_epochs,
            min_lr=config.optim.min_lr,
            lags=settings.flags.lagging_rate,
        )
        torch.manual_seed(config.run.seed)
        self.module = task.build().to(runtime.device)
        self.optimizer = torch.optim.AdamW(
            task.parameter_groups(self.module),
            fused=True,
            capturable=wants_graph(settings, runtime.device),
        )
        self.base_lr = [float(group["base_lr"]) for group in self.optimizer.param_groups]
        self.progress = Progress()
        self.ledger = SampleLedger() if config.train.ledger else None
        self._committed: int | None = None
        self._restored: str | None = None
        self._interval: dict[str, Any] = {}
        self._journal = Journal(runtime.folder)
        self.commits = Commits(
            runtime, every_seconds=config.train.commit_every_seconds, journal=self._journal
        )

    def run(self) -> dict[str, float]:
        """Train to the end and return the metrics.

        Raises:
            CheckpointError: If a checkpoint or the metrics cannot be read or written.
            ReconError: If a loss or a weight is not finite.
        """
        self._restore()
        self.task.on_device(self.runtime.device)
        set_sync_batch_norm(self.module, self.config.train.sync_batch_norm)
        set_first_average(self.module, not self.settings.flags.keeps_initial_statistics)
        set_activation_checkpointing(self.module, self.config.train.activation_checkpointing)
        self.records = self._open_records()
        if self.progress.step == 0:
            self._evaluate("before")
        self._train()
        self._commit()
        self.commits.finish()
        if self.commits.stopping:
            raise self._stopped()
        if self.settings.flags.keeps_initial_statistics and self.runtime.rank == 0:
            _warn_of_initial_statistics(self.module)
        self._evaluate("after")
        self.commits.note("done", self.progress.step)
        raise_on_all_ranks(self._end_records())
        memory = float(peak_memory_bytes(self.runtime.device))
        return self.progress.summary() | {"peak_memory_bytes": memory}

    # -- the steps -------------------------------------------------------------------------------

    def _train(self) -> None:
        """Take the steps that are left; what happens in one reads from top to bottom."""
        progress, device, train = self.progress, self.runtime.device, self.config.train
        step = Step(
            take_step,
            self.task,
            self.module,
            self.optimizer,
            settings=self.settings,
            plan=self.plan,
            feed=self.feed,
            device=device,
            rank=self.runtime.rank,
        )
        clock = StepClock(device)
        self.records.follow(step.meter, clock, rank=self.runtime.rank)
        if self._epoch_is_over():
            self._end_epoch()
        for batch in clock.waiting(self._batches()):
            rates = self._rates()
            step(batch, epoch=progress.epoch, step=progress.step, lr=rates)
            clock.stepped()
            progress.advance(train.global_batch_size)
            is_whole = progress.step % train.log_every_steps == 0
            if is_whole or progress.step >= self.max_steps:
                self.records.begin(lr=rates[-1], is_whole=is_whole)
            if self._epoch_is_over():
                with clock.paused():
                    self._end_epoch()  # validates; what it finds belongs to the commit
            elif self.commits.due(progress.step):
                with clock.paused():
                    self._commit()
        self.records.write()

    def _batches(self) -> Iterator[Batch]:
        """This worker's shares of the global batches that are left, epoch after epoch."""
        progress, device, rank = self.progress, self.runtime.device, self.runtime.rank
        while not self._is_done():
            start, epoch = self._step_in_epoch(), progress.epoch

            def shares(epoch: int = epoch, start: int = start) -> Iterator[Batch]:
                return self.feed.epoch(epoch, start, self.plan, rank)

            for batch in prefetch_batches(shares, device):
                if self.ledger is not None:
                    self.ledger.mark(epoch, batch["sample_id"])
                yield batch
                if self._is_done():
                    return

    def _is_done(self) -> bool:
        return self.progress.step >= self.max_steps or self.commits.stopping

    def _step_in_epoch(self) -> int:
        return self.progress.samples_in_epoch // self.order.global_batch_size

    def _epoch_is_over(self) -> bool:
        return self._step_in_epoch() >= self.steps_per_epoch

    def _rates(self) -> list[float]:
        """Learning rate of every parameter group in this step."""
        epoch = self.progress.step / self.steps_per_epoch
        if self.schedule.lags:
            epoch = self.progress.epoch
        return [self.schedule.lr(base, epoch) for base in self.base_lr]

    # -- evaluation ------------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        """Validate where it is due, and keep the checkpoint of the best validation."""
        epoch = self.progress.epoch
        is_better = self.settings.validates(epoch) and self._validate(epoch)
        self.progress.finish_epoch()
        if is_better or self.commits.due(self.progress.step, ask=True):
            self._commit()

    def _evaluate(self, when: str) -> None:
        self.module.eval()
        with torch.no_grad(), rank_zero_barrier():
            metrics = self.task.evaluate(self.module, self.runtime, when=when)
        self.progress.metrics |= metrics
        self.records.metrics(self.progress.step, self.progress.epoch, metrics)
        if metrics and self.runtime.rank == 0:
            logger.info("%s: %s", when, " ".join(f"{k} {v:.3f}" for k, v in metrics.items()))

    def _validate(self, epoch: int) -> bool:
        """Validate after an epoch; return whether it is the best one so far, on every rank."""
        self.records.write()
        self.module.eval()
        with torch.no_grad(), rank_zero_barrier():
            box = [self.task.validate(self.module, self.runtime, epoch=epoch)]
        if is_distributed():
            dist.broadcast_object_list(box, src=0)  # some values are rank 0's only
        values = self.progress.validated = box[0]
        self.records.metrics(self.progress.step, epoch, values)
        if values and self.runtime.rank == 0:
            shown = " ".join(f"{name} {value:.4f}" for name, value in values.items())
            total = self.settings.total_epochs
            logger.info("validation after epoch %d of %d: %s", epoch + 1, total, shown)
        metric, name = self.settings.select, f"step-{self.progress.step:08d}"
        return metric is not None and self.progress.choose(name, metric, values, epoch)

    # -- checkpoints -----------------------------------------------------------------------------

    def _commit(self) -> None:
        """Store everything that continues the run; every rank takes part."""
        self.records.write()
        began = time.monotonic()
        progress = self.progress
        if progress.step == self._committed:
            return
        self._interval = self.records.pending()
        self.records.check_weights(self.module, self.optimizer)
        if self.ledger is not None:
            self.ledger.merge(self.runtime.device)
        name = f"step-{progress.step:08d}"
        self.commits.store(
            self._packed,
            name=name,
            step=progress.step,
            metrics=progress.metrics,
            failure=self.records.failure,
        )
        self._committed = progress.step
        self.records.newest_checkpoint = join(self.runtime.store.uri, name)
        progress.commit_seconds += time.monotonic() - began

    def _packed(self) -> Packed:
        progress = self.progress
        layout = self.feed.layout(progress.epoch)
        train: dict[str, Any] = {
            OPTIMIZER: stored_optimizer(self.optimizer),
            "progress": progress.stored(),
            **self.order.stored(),
            INTERVAL: self._interval,
            "world_size": self.runtime.world_size,
            STREAM: None if layout is None else list(layout),
        }
        if self.ledger is not None:
            train["ledger"] = self.ledger.merged
        return pack(
            progress.step,
            model=self.task.stored_model(self.module).state_dict(),
            train=train,
            architecture=self.task.architecture(),
            records=self.task.records(),
            best=progress.best,
        )

    def _restore(self) -> None:
        if self.runtime.rank == 0:
            left = self.runtime.store.clean()
            if left:
                logger.info("removed %s, which were not committed", ", ".join(left))
        found = newest_checkpoint(self.runtime.store, self.runtime.device, rank=self.runtime.rank)
        if found is None:
            return
        self._restored = source = join(self.runtime.store.uri, found.name)
        load_model_state(self.task.stored_model(self.module), found.model, source=source)
        streams = self.feed.layout(0) is not None
        self.progress = progress = restored(
            found, self.order, self.settings, streams=streams, source=source
        )
        if progress.samples_in_epoch:
            begun = found.train.get(STREAM)
            layout = None if begun is None else StreamLayout(*begun)
            used = None if progress.seen is None else progress.seen.numpy()
            self.feed.go_on(progress.epoch, layout, used)
        self._interval = found.train.get(INTERVAL, {})
        if OPTIMIZER in found.train:
            load_optimizer(self.optimizer, found.train[OPTIMIZER])
        if self.ledger is not None:
            self.ledger = SampleLedger(found.train.get("ledger"))
        if progress.best is not None and not self.runtime.store.holds(progress.best["name"]):
            progress.best = None  # of the run that this one was started from
        if self.runtime.rank == 0:
            logger.info("continuing from %s (step %d)", source, progress.step)

    # -- records ---------------------------------------------------------------------------------

    def _open_records(self) -> TrainRecords:
        recorder = None
        if self.runtime.rank == 0:
            last, idle = last_record(self.runtime.folder)
            self.commits.restart = explain_restart(
                self._journal.recent(),
                attempt=self.runtime.attempt,
                step=self.progress.step,
                last_step=last,
                idle_since=idle,
            )
            recorder = Recorder(
                self.runtime.folder,
                start_step=self.progress.step,
                extends_last=bool(self._interval) and self.progress.step < self.max_steps,
            )
        return TrainRecords(
            self.progress,
            recorder,
            self.runtime.device,
            batch_size=self.config.train.global_batch_size,
            steps_per_epoch=self.steps_per_epoch,
            epochs=self.settings.total_epochs,
            max_steps=self.max_steps,
            interval=self._interval,
            newest_checkpoint=self._restored,
        )

    def _end_records(self) -> str:
        """Close the records; return what rank 0 could not write, for all ranks to raise."""
        recorder = self.records.recorder
        if recorder is None:
            return ""
        recorder.close()
        try:
            if self.ledger is not None:
                write_ledger(self.runtime.folder, self.ledger.merged)
            self.runtime.folder.publish()
        except CheckpointError as error:
            return recorder.failure or str(error)
        return recorder.failure

    def _stopped(self) -> StoppedError:
        self.commits.note("stopped", self.progress.step)
        raise_on_all_ranks(self._end_records())
        return StoppedError(
            f"stopped {self.runtime.reason()} after a commit at step {self.progress.step}; the "
            "same command with the same run.name goes on from there"
        )


def _warn_of_initial_statistics(module: nn.Module) -> None:
    """Say that a run was too short for the moving averages of its batch norms."""
    name, part = largest_initial_part(module)
    if part > MOST_INITIAL_PART:
        logger.warning(
            "%.0f %% of the running variance of %s is still its initial value 1: after so few "
            "steps from scratch the published protocol measures a network near chance; train "
            "longer, or set protocol=sound", 100 * part, name,
        )  # fmt: skip


def fit(task: Task, runtime: Runtime, settings: FitSettings) -> dict[str, float]:
    """Train a task to the end, continuing from the newest checkpoint, and return its metrics.

    Raises:
        CheckpointError: If no checkpoint can be read or written.
        ConfigError: If the global batch does not fit the workers or the data.
        OutOfMemoryError: If memory runs out.
        ReconError: If a loss or a weight is not finite.
    """
    advice = training_advice(settings.config.train, world_size=runtime.world_size)
    with translate_oom(runtime.device, advice):
        return Trainer(task, runtime, settings).run()
