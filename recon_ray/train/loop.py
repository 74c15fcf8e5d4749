"""The one training loop of every task.

It is a function of the task, the settings and the newest valid checkpoint: random numbers come from
(seed, epoch, sample) and, for dropout, (seed, step, rank), the order of samples from (seed, epoch).
These few integers are the whole state of the generators, so an interrupted run that continues does
the same steps as one that was never interrupted.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from recon_ray.data.loading.batches import Batch
from recon_ray.data.loading.prefetch import prefetch_batches
from recon_ray.errors import CheckpointError, ReconError, StoppedError
from recon_ray.models.batch_norm import set_sync_batch_norm
from recon_ray.models.cloud import set_activation_checkpointing
from recon_ray.runs.checkpoint import Packed, load_model_state, pack
from recon_ray.runs.journal import Journal, explain_restart, last_record
from recon_ray.runs.recorder import Recorder
from recon_ray.runs.storage import join
from recon_ray.train.commits import Commits, raise_on_all_ranks
from recon_ray.train.feed.batching import BatchPlan, steps_per_epoch
from recon_ray.train.metrics import Mean, Reading, is_distributed, peak_memory_bytes
from recon_ray.train.optim import CosineSchedule, load_optimizer, stored_optimizer
from recon_ray.train.out_of_memory import training_advice, translate_oom
from recon_ray.train.rank_zero_barrier import rank_zero_barrier
from recon_ray.train.resume import check_feed, newest_checkpoint
from recon_ray.train.runtime import Runtime
from recon_ray.train.sample_ledger import SampleLedger, write_ledger
from recon_ray.train.settings import FitSettings
from recon_ray.train.state import Progress
from recon_ray.train.step.one_step import Step, wants_graph
from recon_ray.train.step_timer import Lap, StepClock
from recon_ray.train.task import Task

logger = logging.getLogger(__name__)
#: One line a record; a job that shows a progress bar instead turns it off.
records = logging.getLogger(f"{__name__}.records")


@dataclass(frozen=True)
class _Interval:
    """The steps between two records, whose losses may still be on their way to the host."""

    step: int
    epoch: int
    lr: float
    reading: Reading
    lap: Lap


class Trainer:
    """One worker's part of a fit.

    Args:
        task: What is trained.
        runtime: The outside.
        settings: Plain settings.
    """

    def __init__(self, task: Task, runtime: Runtime, settings: FitSettings) -> None:
        self.task = task
        self.runtime = runtime
        self.settings = settings
        self.plan = BatchPlan(
            settings.global_batch_size, runtime.world_size, settings.micro_batch_size
        )
        self.feed = runtime.feed()
        self.steps_per_epoch = steps_per_epoch(self.feed.rows, settings.global_batch_size)
        self.last_epoch = settings.total_epochs
        self.schedule = CosineSchedule(
            settings.epochs,
            settings.warmup_epochs,
            min_lr=settings.min_lr,
            protocol=settings.protocol,
        )
        self.progress = Progress()
        torch.manual_seed(settings.seed)
        self.module = task.build().to(runtime.device)
        self.optimizer = torch.optim.AdamW(
            task.parameter_groups(self.module),
            fused=True,
            capturable=wants_graph(settings, runtime.device),
        )
        self._lr: list[float] = []
        self._unwritten: _Interval | None = None
        self.base_lr = [float(group["base_lr"]) for group in self.optimizer.param_groups]
        self.recorder: Recorder | None = None
        self.ledger = SampleLedger() if runtime.keeps_ledger else None
        self._committed: int | None = None
        self._last: str | None = None  # the newest checkpoint
        self._journal = Journal(runtime.folder)
        self.commits = Commits(
            runtime, every_seconds=settings.commit_every_seconds, journal=self._journal
        )

    @property
    def max_steps(self) -> int:
        """Optimizer steps after which the fit ends."""
        whole = self.last_epoch * self.steps_per_epoch
        return min(whole, self.settings.max_steps or whole)

    def run(self) -> dict[str, float]:
        """Train to the end and give the metrics.

        Raises:
            CheckpointError: If a checkpoint or the metrics cannot be read or written.
            ReconError: If a loss is not finite.
        """
        self._restore()
        self.task.on_device(self.runtime.device)
        set_sync_batch_norm(self.module, self.settings.sync_batch_norm)
        set_activation_checkpointing(self.module, self.settings.activation_checkpointing)
        if self.runtime.rank == 0:
            self.runtime.folder.fetch("metrics.jsonl")
            self._explain_restart()
            self.recorder = Recorder(self.runtime.folder.local, start_step=self.progress.step)
        if self.progress.step == 0:
            self._evaluate("before")
        self._train()
        self._commit()
        self.commits.finish()
        if self.commits.stopping:
            raise self._stopped()
        self._evaluate("after")
        self.commits.note("done", self.progress.step)
        raise_on_all_ranks(self._end_records())
        memory = float(peak_memory_bytes(self.runtime.device))
        return self.progress.summary() | {"peak_memory_bytes": memory}

    # -- the steps -------------------------------------------------------------------------------

    def _train(self) -> None:
        step = Step(
            self.task,
            self.module,
            self.optimizer,
            settings=self.settings,
            plan=self.plan,
            feed=self.feed,
            device=self.runtime.device,
            rank=self.runtime.rank,
        )
        clock = StepClock(self.runtime.device)
        while True:
            if self._epoch_is_over():
                with clock.paused():
                    self._end_epoch()
            if self.progress.step >= self.max_steps or self.commits.stopping:
                self._write_record()
                return
            for batch in clock.waiting(self._batches()):
                progress, self._lr = self.progress, self._rates()
                step(batch, epoch=progress.epoch, step=progress.step, lr=self._lr)
                clock.stepped()
                progress.advance(self.settings.global_batch_size)
                if self._at_record():
                    self._record(step.meter, clock)
                # The end of the epoch comes first: what it validates belongs to the commit.
                if not self._epoch_is_over() and self.commits.due(progress.step):
                    with clock.paused():
                        self._commit()
                if progress.step >= self.max_steps or self.commits.stopping:
                    break

    def _epoch_is_over(self) -> bool:
        return self.progress.step_in_epoch >= self.steps_per_epoch

    def _end_epoch(self) -> None:
        """Validate where it is due, and keep the checkpoint of the best validation."""
        epoch = self.progress.epoch
        is_better = self.settings.validates(epoch) and self._validate(epoch)
        self.progress.finish_epoch()
        if is_better or self.commits.due(self.progress.step, ask=True):
            self._commit()

    def _batches(self) -> Iterator[Batch]:
        start, epoch = self.progress.step_in_epoch, self.progress.epoch
        device = self.runtime.device
        for batch in prefetch_batches(
            lambda: self.feed.epoch(epoch, start, self.plan, self.runtime.rank), device
        ):
            if self.feed.tracks_samples:
                self.progress.mark(batch["sample_id"])
            if self.ledger is not None:
                self.ledger.mark(epoch, batch["sample_id"])
            yield batch

    def _rates(self) -> list[float]:
        """Learning rate of every parameter group in this step."""
        epoch: float = self.progress.epoch
        if self.settings.protocol == "sound":
            epoch = self.progress.step / self.steps_per_epoch
        return [self.schedule.lr(base, epoch) for base in self.base_lr]

    # -- records ---------------------------------------------------------------------------------

    def _at_record(self) -> bool:
        step = self.progress.step
        return step % self.settings.log_every_steps == 0 or step >= self.max_steps

    def _record(self, meter: Mean, clock: StepClock) -> None:
        """Begin to read the losses of the interval, and write those of the one before.

        The device goes on meanwhile. On the CPU there is nothing to wait for.
        """
        self._write_record()
        progress = self.progress
        self._unwritten = _Interval(
            progress.step, progress.epoch, self._lr[-1], meter.read(), clock.lap()
        )
        if self.runtime.device.type == "cpu" or progress.step >= self.max_steps:
            self._write_record()

    def _write_record(self) -> None:
        interval, self._unwritten = self._unwritten, None
        if interval is None:
            return
        means = interval.reading.means()
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            start = "" if self._last is None else f" resume={self.runtime.store.uri}/{self._last}"
            raise ReconError(
                f"step {interval.step}: the loss is not finite ({', '.join(bad)}); begin another "
                "run with a lower optim.lr, runtime.precision=fp32 or train.clip_norm=10: "
                f"run.name=<another>{start}"
            )
        progress, lap = self.progress, interval.lap
        if math.isnan(progress.loss_first):
            progress.loss_first = means["loss"]
        progress.loss_last = means["loss"]
        progress.train_seconds += lap.seconds
        if self.recorder is None:
            return
        rate = lap.steps * self.settings.global_batch_size / lap.seconds
        waited = lap.waited / lap.seconds
        values = {"train/loss": means.pop("loss")}
        values |= {_record_name(name): value for name, value in means.items()}
        values |= {"train/lr": interval.lr, "perf/samples_per_second": rate}
        values |= {"perf/data_wait_fraction": waited, **self._memory()}
        self.recorder.write(interval.step, interval.epoch, values)
        parts = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        records.info(
            "epoch %.1f/%d step %d/%d loss %.4f (%s) lr %.1e %.0f samples/s data %.0f%% left %s",
            interval.step / self.steps_per_epoch, self.last_epoch, interval.step, self.max_steps,
            values["train/loss"], parts, interval.lr, rate, 100 * waited,
            timedelta(seconds=round((self.max_steps - interval.step) * lap.seconds / lap.steps)),
        )  # fmt: skip

    def _memory(self) -> dict[str, float]:
        if self.runtime.device.type != "cuda":
            return {}
        return {"perf/gpu_memory_bytes": float(peak_memory_bytes(self.runtime.device))}

    def _evaluate(self, when: str) -> None:
        self.module.eval()
        with torch.no_grad(), rank_zero_barrier():
            metrics = self.task.evaluate(self.module, self.runtime, when=when)
        self.progress.metrics |= metrics
        if self.recorder is not None and metrics:
            named = {f"val/{name}": value for name, value in metrics.items()}
            self.recorder.write(self.progress.step, self.progress.epoch, named)
            logger.info("%s: %s", when, " ".join(f"{k} {v:.3f}" for k, v in metrics.items()))

    def _validate(self, epoch: int) -> bool:
        """Validate after an epoch; whether it is the best one so far, on every rank."""
        self._write_record()
        self.module.eval()
        with torch.no_grad(), rank_zero_barrier():
            box = [self.task.validate(self.module, self.runtime)]
        if is_distributed():
            dist.broadcast_object_list(box, src=0)  # some values are rank 0's only
        values = self.progress.validated = box[0]
        if self.recorder is not None and values:
            named = {f"val/{name}": value for name, value in values.items()}
            self.recorder.write(self.progress.step, epoch, named)
            shown = " ".join(f"{name} {value:.4f}" for name, value in values.items())
            logger.info("validation after epoch %d of %d: %s", epoch + 1, self.last_epoch, shown)
        metric = self.settings.select
        if metric is None or not math.isfinite(values.get(metric, math.nan)):
            return False
        best, value = self.progress.best, values[metric]
        if best is not None and value <= best["value"]:
            return False
        name = f"step-{self.progress.step:08d}"
        self.progress.best = {"name": name, "metric": metric, "value": value, "epoch": epoch}
        return True

    # -- checkpoints -----------------------------------------------------------------------------

    def _commit(self) -> None:
        """Store everything that continues the run; every rank takes part."""
        self._write_record()
        began = time.monotonic()
        progress = self.progress
        if progress.step == self._committed:
            return
        progress.share_marks(self.runtime.device)
        if self.ledger is not None:
            self.ledger.merge(self.runtime.device)
        self.commits.store(
            self._packed,
            name=f"step-{progress.step:08d}",
            step=progress.step,
            metrics=progress.metrics,
            failure=self._record_failure(),
        )
        self._committed, self._last = progress.step, f"step-{progress.step:08d}"
        progress.commit_seconds += time.monotonic() - began

    def _record_failure(self) -> str:
        return "" if self.recorder is None else self.recorder.failure

    def _end_records(self) -> str:
        """Close the records; give what rank 0 could not write, to be told to all."""
        if self.recorder is None:
            return ""
        self.recorder.close()
        try:
            if self.ledger is not None:
                write_ledger(self.runtime.folder, self.ledger.merged)
            self.runtime.folder.publish()
        except CheckpointError as error:
            return self.recorder.failure or str(error)
        return self.recorder.failure

    def _packed(self) -> Packed:
        progress = self.progress
        train: dict[str, Any] = {
            "optimizer": stored_optimizer(self.optimizer),
            "progress": {k: v for k, v in vars(progress).items() if v is not None},
            "seed": self.settings.seed,
            "global_batch_size": self.settings.global_batch_size,
            "world_size": self.runtime.world_size,
            "tracks_samples": self.feed.tracks_samples,
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
        found = newest_checkpoint(self.runtime.store, rank=self.runtime.rank)
        if found is None:
            return
        self._last, source = found.name, join(self.runtime.store.uri, found.name)
        load_model_state(self.task.stored_model(self.module), found.model, source=source)
        load_optimizer(self.optimizer, found.train["optimizer"])
        self.progress = progress = Progress(**found.train["progress"])
        check_feed(found, progress, tracks_samples=self.feed.tracks_samples)
        if self.ledger is not None:
            self.ledger = SampleLedger(found.train.get("ledger"))
        if progress.best is not None and progress.best["name"] not in self.runtime.store.names():
            progress.best = None  # of the run that this one was started from
        if self.runtime.rank == 0:
            logger.info("continuing from %s (step %d)", source, self.progress.step)

    def _explain_restart(self) -> None:
        last, idle = last_record(self.runtime.folder)
        self.commits.restart = explain_restart(
            self._journal.events(),
            attempt=self.runtime.attempt,
            step=self.progress.step,
            last_step=last,
            idle_since=idle,
        )

    def _stopped(self) -> StoppedError:
        self.commits.note("stopped", self.progress.step)
        raise_on_all_ranks(self._end_records())
        return StoppedError(
            f"stopped {self.runtime.reason()} after a commit at step {self.progress.step}; the "
            "same command with the same run.name goes on from there"
        )


def fit(task: Task, runtime: Runtime, settings: FitSettings) -> dict[str, float]:
    """Train a task to the end, continuing from the newest checkpoint, and give its metrics.

    Raises:
        CheckpointError: If no checkpoint can be read or written.
        ConfigError: If the global batch does not fit the workers or the data.
        OutOfMemoryError: If memory runs out.
        ReconError: If a loss is not finite.
    """
    advice = training_advice(settings, world_size=runtime.world_size)
    with translate_oom(runtime.device, advice):
        return Trainer(task, runtime, settings).run()


def _record_name(name: str) -> str:
    """Name in the records of what a step tells beside its loss: parts of the loss, or accuracy."""
    return "train/accuracy" if name == "accuracy" else f"train/loss_{name}"
