"""The one training loop of every task.

It is a function of the task, the settings and the newest valid checkpoint: random numbers come from
(seed, epoch, sample) and, for dropout, (seed, step, rank), the order of samples from (seed, epoch).
These few integers are the whole state of the generators, so an interrupted run that continues does
the same steps as one that was never interrupted.
"""

from __future__ import annotations

import inspect
import logging
import math
import resource
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from recon_ray.data.batches import Batch, prefetch
from recon_ray.errors import CheckpointError, ConfigError, ReconError, StoppedError
from recon_ray.models.batch_norm import set_sync_batch_norm
from recon_ray.points.random import SampleGenerator
from recon_ray.train.batching import BatchPlan, steps_per_epoch
from recon_ray.train.checkpoint import Checkpoint, load_model_state
from recon_ray.train.commits import Commits, agree
from recon_ray.train.journal import Journal, explain_restart, last_record
from recon_ray.train.ledger import SampleLedger, write_ledger
from recon_ray.train.metrics import Mean, is_distributed
from recon_ray.train.optim import CosineSchedule
from recon_ray.train.packing import Packed, pack
from recon_ray.train.recorder import Recorder
from recon_ray.train.runtime import Runtime
from recon_ray.train.task import Task

logger = logging.getLogger(__name__)
#: One line a record; a job that shows a progress bar instead turns it off.
records = logging.getLogger(f"{__name__}.records")

#: What DistributedDataParallel calls its exchange of batch-norm statistics (renamed in torch 2.14).
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
#: Which independent random numbers of a step: see ``SampleGenerator(stream=...)``.
AUGMENT_STREAM, MODEL_STREAM = 0, 1


@dataclass(frozen=True)
class FitSettings:
    """Plain settings of a fit.

    Args:
        epochs: Epochs of the schedule.
        max_steps: Stop after this many optimizer steps, None for the whole schedule.
        global_batch_size: Samples an optimizer step over all workers.
        micro_batch_size: Most samples a worker holds at once.
        seed: Seed of weights and all sample-wise random numbers.
        warmup_epochs: Epochs of warm-up.
        min_lr: Learning rate at the ends of the schedule.
        protocol: ``reference`` trains epochs 0..epochs with the rate of the epoch before, as the
            published code; ``sound`` trains exactly ``epochs`` with a rate per step.
        extra_epoch: Whether ``reference`` trains that last epoch; segmentation does not.
        clip_norm: Largest L2 norm of the gradient, None for no clipping.
        double_step: Step, clip, and step again with the same gradient, as the published part
            segmentation does.
        precision: ``fp32`` or ``bf16`` (autocast of the transformer).
        sync_batch_norm: Reduce batch-norm statistics over the workers.
        log_every_steps: Steps between two records.
        commit_every_seconds: Seconds between two checkpoints, as rank 0 counts them.
        validate_every_epochs: Epochs between two validations, None for none; the last epoch is
            always validated.
        validate_from_epoch: First epoch (from 0) that is validated.
        select: Value of the validation whose highest one marks the best checkpoint.
    """

    epochs: int
    global_batch_size: int
    max_steps: int | None = None
    micro_batch_size: int | None = None
    seed: int = 0
    warmup_epochs: float = 10.0
    min_lr: float = 1e-6
    protocol: Literal["sound", "reference"] = "sound"
    extra_epoch: bool = True
    clip_norm: float | None = None
    double_step: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    sync_batch_norm: bool = True
    log_every_steps: int = 20
    commit_every_seconds: float = 60.0
    validate_every_epochs: int | None = None
    validate_from_epoch: int = 0
    select: str | None = None

    @property
    def total_epochs(self) -> int:
        """Epochs that are trained."""
        return self.epochs + (1 if self.protocol == "reference" and self.extra_epoch else 0)

    def validates(self, epoch: int) -> bool:
        """Whether there is a validation at the end of an epoch, counted from 0.

        The published code validates after epochs 0, n, 2n, ...; ``sound`` after n, 2n, ... epochs.
        """
        every = self.validate_every_epochs
        if every is None or epoch < self.validate_from_epoch:
            return False
        number = epoch if self.protocol == "reference" else epoch + 1
        return number % every == 0 or epoch + 1 == self.total_epochs


@dataclass
class Progress:
    """Where a run stands; stored beside the model."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    samples: int = 0
    train_seconds: float = 0.0
    commit_seconds: float = 0.0
    loss_first: float = math.nan
    loss_last: float = math.nan
    metrics: dict[str, float] = field(default_factory=dict)
    validated: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    seen: Tensor | None = None

    def advance(self, samples: int) -> None:
        """Count one optimizer step."""
        self.step += 1
        self.step_in_epoch += 1
        self.samples += samples

    def finish_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch += 1
        self.step_in_epoch = 0
        self.seen = None

    def mark(self, sample_ids: Tensor) -> None:
        """Note the samples that this worker has used in the epoch."""
        highest = int(sample_ids.max()) + 1
        if self.seen is None:
            self.seen = torch.zeros(highest, dtype=torch.uint8)
        elif len(self.seen) < highest:
            self.seen = torch.cat([self.seen, self.seen.new_zeros(highest - len(self.seen))])
        self.seen[sample_ids] = 1


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
        self.module = task.build()
        self.optimizer = torch.optim.AdamW(task.parameter_groups(self.module), fused=True)
        self.base_lr = [float(group["base_lr"]) for group in self.optimizer.param_groups]
        self.recorder: Recorder | None = None
        self.ledger = SampleLedger() if runtime.keeps_ledger else None
        self._committed: int | None = None
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
        self.module.to(self.runtime.device)
        self.task.on_device(self.runtime.device)
        set_sync_batch_norm(self.module, self.settings.sync_batch_norm)
        if self.runtime.rank == 0:
            self.runtime.folder.fetch("metrics.jsonl")
            self._explain_restart()
            self.recorder = Recorder(self.runtime.folder.local, start_step=self.progress.step)
        if self.progress.step == 0:
            self._evaluate("before")
        self._train(self._wrapped())
        self._commit()
        self.commits.finish()
        if self.commits.stopping:
            raise self._stopped()
        self._evaluate("after")
        self.commits.note("done", self.progress.step)
        agree(self._end_records())
        return self._result()

    # -- the steps -------------------------------------------------------------------------------

    def _train(self, module: nn.Module) -> None:
        meter = Mean()
        clock = _Clock()
        while True:
            if self._epoch_is_over():
                with clock.paused():
                    self._end_epoch()
            if self.progress.step >= self.max_steps or self.commits.stopping:
                return
            for batch in clock.waiting(self._batches()):
                self._step(module, batch, meter)
                self.progress.advance(self.settings.global_batch_size)
                if self._at_record():
                    self._record(meter, clock)
                # The end of the epoch comes first: what it validates belongs to the commit.
                if not self._epoch_is_over() and self.commits.due(self.progress.step):
                    with clock.paused():
                        self._commit()
                if self.progress.step >= self.max_steps or self.commits.stopping:
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
        for batch in prefetch(lambda: self.feed.epoch(epoch, start, self.plan, self.runtime.rank)):
            if self.feed.tracks_samples:
                self.progress.mark(batch["sample_id"])
            if self.ledger is not None:
                self.ledger.mark(epoch, batch["sample_id"])
            yield batch

    def _step(self, module: nn.Module, batch: Batch, meter: Mean) -> None:
        self._set_lr()
        self._set_seed()
        module.train()
        slices = self.plan.micro_slices()
        for i, part in enumerate(slices):
            micro = {
                name: value[part].to(self.runtime.device, non_blocking=True)
                for name, value in batch.items()
            }
            last = i == len(slices) - 1
            with self._no_sync(module, enabled=not last):
                losses = self._losses(module, micro)
                count = part.stop - part.start
                (losses["loss"] * (count / self.plan.per_worker)).backward()
            meter.update(losses, weight=count)
        if self.settings.double_step:
            self.optimizer.step()
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _losses(self, module: nn.Module, micro: Batch) -> dict[str, Tensor]:
        ids, seed, epoch = micro["sample_id"], self.settings.seed, self.progress.epoch
        with torch.no_grad():
            enriched = self.task.enrich(
                micro, SampleGenerator(seed, ids, epoch, stream=AUGMENT_STREAM)
            )
        with self._autocast():
            return module(enriched, SampleGenerator(seed, ids, epoch, stream=MODEL_STREAM))

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = self.settings.precision == "bf16"
        return torch.autocast(self.runtime.device.type, dtype=torch.bfloat16, enabled=enabled)

    @staticmethod
    def _no_sync(module: nn.Module, *, enabled: bool) -> AbstractContextManager[Any]:
        if enabled and isinstance(module, DistributedDataParallel):
            return module.no_sync()
        return nullcontext()

    def _set_lr(self) -> None:
        epoch: float = self.progress.epoch
        if self.settings.protocol == "sound":
            epoch = self.progress.step / self.steps_per_epoch
        for group, base in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = self.schedule.lr(base, epoch)

    def _set_seed(self) -> None:
        """Derive torch's generator (dropout) from the step, so that no state needs storing."""
        words = [self.settings.seed, self.progress.step, self.runtime.rank]
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))

    def _wrapped(self) -> nn.Module:
        if not is_distributed():
            return self.module
        sync: dict[str, Any] = {_SYNC_BUFFERS: not self.settings.sync_batch_norm}
        return DistributedDataParallel(
            self.module,
            device_ids=[self.runtime.device] if self.runtime.device.type == "cuda" else None,
            find_unused_parameters=self.task.has_unused_parameters,
            gradient_as_bucket_view=True,
            **sync,  # synchronized statistics are equal already
        )

    # -- records ---------------------------------------------------------------------------------

    def _at_record(self) -> bool:
        step = self.progress.step
        return step % self.settings.log_every_steps == 0 or step >= self.max_steps

    def _record(self, meter: Mean, clock: _Clock) -> None:
        means = meter.compute()
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            raise ReconError(
                f"step {self.progress.step}: the loss is not finite ({', '.join(bad)}); lower "
                "optim.lr, set runtime.precision=fp32 or train.clip_norm, and start the run again: "
                "it continues from the last checkpoint"
            )
        progress = self.progress
        if math.isnan(progress.loss_first):
            progress.loss_first = means["loss"]
        progress.loss_last = means["loss"]
        seconds, waited, steps = clock.lap()
        progress.train_seconds += seconds
        if self.recorder is None:
            return
        rate = steps * self.settings.global_batch_size / seconds
        lr = self.optimizer.param_groups[-1]["lr"]
        values = {"train/loss": means.pop("loss")}
        values |= {f"train/loss_{name}": value for name, value in means.items()}
        values |= {"train/lr": lr, "perf/samples_per_second": rate}
        values |= {"perf/data_wait_fraction": waited / seconds, **self._memory()}
        self.recorder.write(progress.step, progress.epoch, values)
        parts = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        records.info(
            "epoch %d/%d step %d/%d loss %.4f (%s) lr %.1e %.0f samples/s data %.0f%%",
            progress.epoch, self.last_epoch, progress.step, self.max_steps, values["train/loss"],
            parts, lr, rate, 100 * waited / seconds,
        )  # fmt: skip

    def _memory(self) -> dict[str, float]:
        if self.runtime.device.type != "cuda":
            return {}
        return {"perf/gpu_memory_bytes": float(peak_memory_bytes(self.runtime.device))}

    def _evaluate(self, when: str) -> None:
        self.module.eval()
        with torch.no_grad():
            metrics = self.task.evaluate(self.module, self.runtime, when=when)
        self.progress.metrics |= metrics
        if self.recorder is not None and metrics:
            named = {f"val/{name}": value for name, value in metrics.items()}
            self.recorder.write(self.progress.step, self.progress.epoch, named)
            logger.info("%s: %s", when, " ".join(f"{k} {v:.3f}" for k, v in metrics.items()))

    def _validate(self, epoch: int) -> bool:
        """Validate after an epoch; whether it is the best one so far, on every rank."""
        self.module.eval()
        with torch.no_grad():
            box = [self.task.validate(self.module, self.runtime)]
        if is_distributed():
            dist.broadcast_object_list(box, src=0)  # some values are rank 0's only
        values = self.progress.validated = box[0]
        if self.recorder is not None and values:
            named = {f"val/{name}": value for name, value in values.items()}
            self.recorder.write(self.progress.step, epoch, named)
            shown = " ".join(f"{name} {value:.4f}" for name, value in values.items())
            logger.info("epoch %d/%d validation: %s", epoch, self.last_epoch, shown)
        metric = self.settings.select
        if metric is None or not math.isfinite(values.get(metric, math.nan)):
            return False
        best, value = self.progress.best, values[metric]
        if best is not None and value <= best["value"]:
            return False
        name = f"step-{self.progress.step:08d}"
        self.progress.best = {"name": name, "metric": metric, "value": value, "epoch": epoch}
        return True

    def _result(self) -> dict[str, float]:
        progress = self.progress
        result = dict(progress.metrics)
        result |= {f"{name}_last": value for name, value in progress.validated.items()}
        if progress.best is not None:
            result[f"{progress.best['metric']}_best"] = float(progress.best["value"])
            result["best_epoch"] = float(progress.best["epoch"])
        if not math.isnan(progress.loss_first):
            result |= {"loss_first": progress.loss_first, "loss_last": progress.loss_last}
        if progress.train_seconds > 0:
            result["samples_per_second"] = progress.samples / progress.train_seconds
            result["commit_fraction"] = progress.commit_seconds / progress.train_seconds
        result["peak_memory_bytes"] = float(peak_memory_bytes(self.runtime.device))
        return result | {"steps": float(progress.step), "epochs": float(progress.epoch)}

    # -- checkpoints -----------------------------------------------------------------------------

    def _commit(self) -> None:
        """Store everything that continues the run; every rank takes part."""
        began = time.monotonic()
        progress = self.progress
        if progress.step == self._committed:
            return
        if is_distributed() and progress.seen is not None:
            progress.seen = _union(progress.seen, self.runtime.device)
        if self.ledger is not None:
            self.ledger.merge(self.runtime.device)
        self.commits.store(
            self._packed,
            name=f"step-{progress.step:08d}",
            step=progress.step,
            metrics=progress.metrics,
            failure=self._record_failure(),
        )
        self._committed = progress.step
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
            "optimizer": self.optimizer.state_dict(),
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
        found = self._newest()
        if found is None:
            return
        source = f"{self.runtime.store.uri}/{found.name}"
        load_model_state(self.task.stored_model(self.module), found.model, source=source)
        self.optimizer.load_state_dict(found.train["optimizer"])
        self.progress = progress = Progress(**found.train["progress"])
        self._check_feed(found)
        if self.ledger is not None:
            self.ledger = SampleLedger(found.train.get("ledger"))
        if progress.best is not None and progress.best["name"] not in self.runtime.store.names():
            progress.best = None  # of the run that this one was started from
        if self.runtime.rank == 0:
            logger.info("continuing from %s (step %d)", source, self.progress.step)

    def _check_feed(self, found: Checkpoint) -> None:
        """Refuse to end an epoch in another order than it was begun in: samples would repeat."""
        streamed = found.train.get("tracks_samples", self.feed.tracks_samples)
        if self.progress.step_in_epoch and streamed != self.feed.tracks_samples:
            was, now = ("a stream", "by index") if streamed else ("by index", "a stream")
            way = "data.mode=" + ("stream and cluster.workers=1 or more" if streamed else "shared")
            raise ConfigError(
                f"data.mode: epoch {self.progress.epoch + 1} was begun with samples read {was} and "
                f"would go on {now}, with samples used twice; set {way} until it has ended"
            )

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
        agree(self._end_records())
        return StoppedError(
            f"stopped {self.runtime.reason()} after a commit at step {self.progress.step}; the "
            "same command with the same run.name goes on from there"
        )

    def _newest(self) -> Checkpoint | None:
        """The checkpoint that rank 0 finds valid, on every rank."""
        store = self.runtime.store
        if not is_distributed():
            return store.load_latest()
        found = store.load_latest() if self.runtime.rank == 0 else None
        box = [found.name if found is not None else None]
        dist.broadcast_object_list(box, src=0)
        if box[0] is None or self.runtime.rank == 0:
            return found
        return store.load(box[0])


class _Clock:
    """Wall time of the steps and how much of it was waiting for data."""

    def __init__(self) -> None:
        self._lap = time.monotonic()
        self._waited = 0.0
        self._steps = 0

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on and count the time spent waiting for each."""
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            self._waited += time.monotonic() - asked
            self._steps += 1
            yield batch

    def lap(self) -> tuple[float, float, int]:
        """Seconds, seconds waited and steps since the last lap."""
        now = time.monotonic()
        result = (max(now - self._lap, 1e-9), self._waited, self._steps)
        self._lap, self._waited, self._steps = now, 0.0, 0
        return result

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of a commit or a validation out of the lap."""
        began = time.monotonic()
        yield
        self._lap += time.monotonic() - began


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory of this worker so far: on the GPU, or of the process without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _union(seen: Tensor, device: torch.device) -> Tensor:
    """Samples that any worker has used."""
    length = torch.tensor([len(seen)], device=device)
    dist.all_reduce(length, op=dist.ReduceOp.MAX)
    padded = torch.zeros(int(length), dtype=torch.uint8, device=device)
    padded[: len(seen)] = seen.to(device)
    dist.all_reduce(padded, op=dist.ReduceOp.MAX)
    return padded.cpu()


def fit(task: Task, runtime: Runtime, settings: FitSettings) -> dict[str, float]:
    """Train a task to the end, continuing from the newest checkpoint, and give its metrics.

    Raises:
        CheckpointError: If no checkpoint can be read or written.
        ConfigError: If the global batch does not fit the workers or the data.
        ReconError: If a loss is not finite.
    """
    return Trainer(task, runtime, settings).run()
