"""State of a run: its place in the training, losses, and the checkpoint that it continues from.

The place is counted in epochs and samples, which have a meaning under every batch size. Steps are
what a run counts in itself; a run that starts from the checkpoint of another one counts anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.runs.checkpoint import OPTIMIZER, Checkpoint, CheckpointStore, Contents
from recon_ray.train.commits import raise_on_all_ranks
from recon_ray.train.metrics import is_distributed
from recon_ray.train.settings import FitSettings


@dataclass
class Progress:
    """Counters, losses and metrics of a run; stored beside the model.

    Its place in the training is ``epoch`` and ``samples_in_epoch``. Of an epoch that an older
    version has begun as a stream, ``seen`` has a 1 for every sample id that was used.
    """

    epoch: int = 0
    samples_in_epoch: int = 0
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

    @classmethod
    def of(cls, train: Mapping[str, Any]) -> Progress:
        """Return the progress in the training state of a checkpoint; older ones count in steps."""
        stored = dict(train["progress"])
        steps = stored.pop("step_in_epoch", None)
        if steps is not None:
            stored["samples_in_epoch"] = steps * train["global_batch_size"]
        return cls(**stored)

    def stored(self) -> dict[str, Any]:
        """Return the progress as plain data."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def advance(self, samples: int) -> None:
        """Count one optimizer step."""
        self.step += 1
        self.samples_in_epoch += samples
        self.samples += samples

    def finish_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch += 1
        self.samples_in_epoch = 0
        self.seen = None

    def choose(self, name: str, metric: str, values: Mapping[str, float], epoch: int) -> bool:
        """Note the checkpoint of a validation if it is the best so far; return whether it is."""
        value = values.get(metric, math.nan)
        if not math.isfinite(value) or (self.best is not None and value <= self.best["value"]):
            return False
        self.best = {"name": name, "metric": metric, "value": value, "epoch": epoch}
        return True

    def summary(self) -> dict[str, float]:
        """Metrics of the whole run by name."""
        result = dict(self.metrics)
        result |= {f"{name}_last": value for name, value in self.validated.items()}
        if self.best is not None:
            result[f"{self.best['metric']}_best"] = float(self.best["value"])
            result["best_epoch"] = float(self.best["epoch"])
        if not math.isnan(self.loss_first):
            result |= {"loss_first": self.loss_first, "loss_last": self.loss_last}
        if self.train_seconds > 0:
            result["samples_per_second"] = self.samples / self.train_seconds
            result["commit_fraction"] = self.commit_seconds / self.train_seconds
        return result | {"steps": float(self.step), "epochs": float(self.epoch)}


#: Bytes of a checkpoint that the workers exchange at once.
PART_BYTES = 1 << 26


def newest_checkpoint(
    store: CheckpointStore, device: torch.device, *, rank: int
) -> Checkpoint | None:
    """Load the checkpoint that rank 0 finds valid; it alone reads the storage, every rank loads it.

    Raises:
        CheckpointError: On every rank, if all are damaged or the storage cannot be reached.
    """
    if not is_distributed():
        return store.load_latest()
    found, failure = None, ""
    if rank == 0:
        try:
            found = store.read_latest()
        except CheckpointError as error:
            failure = str(error)
    raise_on_all_ranks(failure)
    box: list[Any] = [None]
    if found is not None:
        contents = found[0]
        sizes = {file: len(content) for file, content in contents.files.items()}
        box = [(contents.path, contents.manifest, sizes)]
    dist.broadcast_object_list(box, src=0)
    if box[0] is None:
        return None
    path, manifest, sizes = box[0]
    own = {} if found is None else found[0].files
    files = {file: _from_rank_zero(own.get(file, b""), sizes[file], device) for file in sizes}
    return Contents(path, manifest, files).loaded() if found is None else found[1]


def _from_rank_zero(content: bytes, size: int, device: torch.device) -> bytes:
    """Return bytes that rank 0 has, on every other rank; the workers exchange them on a device."""
    parts = []
    for start in range(0, size, PART_BYTES):
        part = torch.empty(min(PART_BYTES, size - start), dtype=torch.uint8, device=device)
        if content:
            part.copy_(
                torch.frombuffer(bytearray(content[start : start + PART_BYTES]), dtype=torch.uint8)
            )
        dist.broadcast(part, src=0)
        if not content:
            parts.append(part.cpu().numpy().tobytes())
    return b"".join(parts)


#: Entry of the training state with the steps since the last record.
INTERVAL = "interval"
#: Entry with the layout of the stream that the epoch was begun in, None for the global order.
STREAM = "stream"


# --- Where a run goes on -------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleOrder:
    """Everything that fixes which samples a step uses; stored beside the model.

    Attributes:
        rows: Samples that are trained on.
        training_set: Identity of their content.
        seed: Seed of the order.
        global_batch_size: Samples of a step.
    """

    rows: int
    training_set: str
    seed: int
    global_batch_size: int

    @classmethod
    def of(cls, train: Mapping[str, Any], now: SampleOrder) -> SampleOrder:
        """Return that of a checkpoint; what older versions did not store is taken to be as now."""
        known = {f.name: train[f.name] for f in fields(cls) if train.get(f.name) not in (None, "")}
        return replace(now, **known)

    def stored(self) -> dict[str, Any]:
        """Return the order as plain data."""
        return asdict(self)

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return self.rows // self.global_batch_size

    def changes(self, before: SampleOrder) -> str:
        """Return what gives another order than before, by option; empty if it is the same."""
        found = []
        if before.rows != self.rows:
            found.append(f"{before.rows} training shapes then, {self.rows} now: data.limit, ...")
        elif before.training_set != self.training_set:
            found.append("other training shapes now: data.path, ...")
        if before.seed != self.seed:
            found.append(f"run.seed={before.seed} then, {self.seed} now")
        return "; ".join(found)


def started_from(
    found: Checkpoint, order: SampleOrder, settings: FitSettings, *, source: str
) -> Checkpoint:
    """Return the checkpoint that a new run starts from, with its place in steps of the new run.

    Raises:
        ConfigError: If the run cannot go on from there sample by sample, or has nothing left to
            train.
    """
    progress, before = Progress.of(found.train), SampleOrder.of(found.train, order)
    _check_optimizer(found, source=source)
    if progress.samples_in_epoch:
        _check_epoch(progress, before, order, source=source)
    per_epoch, size = order.steps_per_epoch, order.global_batch_size
    progress.step = progress.epoch * per_epoch + progress.samples_in_epoch // size
    if progress.step >= settings.total_steps(per_epoch):
        raise _nothing_left(progress, settings, order, source=source)
    name, best = f"step-{progress.step:08d}", progress.best
    is_best = best is not None and best["name"] == found.name
    progress.best = {**best, "name": name} if best is not None and is_best else None
    train = {key: value for key, value in found.train.items() if key != INTERVAL}
    train |= {**order.stored(), "progress": progress.stored()}
    return replace(found, name=name, step=progress.step, train=train)


def _check_epoch(
    progress: Progress, before: SampleOrder, order: SampleOrder, *, source: str
) -> None:
    """Refuse to end an epoch in another order or in batches that it was not begun in."""
    place = f"{source} lies {progress.samples_in_epoch} shapes inside epoch {progress.epoch + 1}"
    way = "or give a checkpoint at the end of an epoch"
    changes = order.changes(before)
    if changes:
        raise ConfigError(
            f"{place}, which cannot be gone on with in another order ({changes}); give the same "
            f"options, {way}"
        )
    if progress.samples_in_epoch % order.global_batch_size:
        raise ConfigError(
            f"train.global_batch_size={order.global_batch_size}: {place} (in batches of "
            f"{before.global_batch_size}), which is no whole number of batches; choose a divisor "
            f"of {progress.samples_in_epoch}, {way}"
        )


def restored(
    found: Checkpoint,
    order: SampleOrder,
    settings: FitSettings,
    *,
    streams: bool,
    source: str,
) -> Progress:
    """Return the progress of a run from its own checkpoint.

    Raises:
        ConfigError: If the run cannot go on from there.
    """
    progress, before = Progress.of(found.train), SampleOrder.of(found.train, order)
    changes = order.changes(before)
    if before.global_batch_size != order.global_batch_size:
        then, now = before.global_batch_size, order.global_batch_size
        changes = f"train.global_batch_size={then} then, {now} now"
    if changes:
        raise ConfigError(
            f"{source}: the run was begun in another order of samples ({changes}); begin another "
            f"one from it: run.name=<another> resume={source}"
        )
    check_feed(found, progress, streams=streams)
    total = settings.total_steps(order.steps_per_epoch)
    if progress.step > total:
        raise _nothing_left(progress, settings, order, source=source)
    if progress.step < total:
        _check_optimizer(found, source=source)
    return progress


def _nothing_left(
    progress: Progress, settings: FitSettings, order: SampleOrder, *, source: str
) -> ConfigError:
    train = settings.config.train
    whole = settings.total_epochs * order.steps_per_epoch
    asked, done = f"train.epochs={train.epochs}", f"{progress.epoch} epochs"
    if settings.total_steps(order.steps_per_epoch) < whole:
        asked, done = f"train.steps={train.steps}", f"{progress.step} steps"
    return ConfigError(
        f"{asked}: nothing is left to train, as {source} has {done} behind it; give a larger number"
    )


def _check_optimizer(found: Checkpoint, *, source: str) -> None:
    """Refuse to train on without the optimizer's state."""
    if OPTIMIZER not in found.train:
        raise ConfigError(
            f"{source}: its optimizer state was dropped when its run had finished, so that it "
            "cannot be trained on; start from its weights (init_from), or run that again with "
            "train.keep_optimizer=true"
        )


def was_streamed(train: Mapping[str, Any], *, now: bool) -> bool:
    """Return whether the epoch of a checkpoint was begun as a stream; ``now`` if it is not said."""
    if STREAM in train:
        return train[STREAM] is not None
    return bool(train.get("tracks_samples", now))  # of older versions


def check_feed(found: Checkpoint, progress: Progress, *, streams: bool) -> None:
    """Refuse to end an epoch in another order than it was begun in: samples would repeat.

    Raises:
        ConfigError: If it would.
    """
    streamed = was_streamed(found.train, now=streams)
    if progress.samples_in_epoch and streamed != streams:
        was, now = ("a stream", "by index") if streamed else ("by index", "a stream")
        way = "data.mode=" + ("stream" if streamed else "shared")
        raise ConfigError(
            f"data.mode: epoch {progress.epoch + 1} was begun with samples read {was} and "
            f"would go on {now}, with samples used twice; set {way} until it has ended"
        )
