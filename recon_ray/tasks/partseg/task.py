"""Part segmentation: training on clouds with part labels, and scoring by mIoU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from recon_ray.data.loading.batches import Batch, BatchOptions
from recon_ray.losses.downstream import segmentation_losses
from recon_ray.models.partseg import PartSegmenter, is_part_head_parameter
from recon_ray.models.presets import whole_arguments
from recon_ray.points import ops, random, transforms
from recon_ray.points.random import RandomSource, SampleGenerator
from recon_ray.tasks.feature_extraction import batches_of
from recon_ray.tasks.partseg.config import PartsegConfig
from recon_ray.tasks.partseg.iou import (
    PartScores,
    PartTable,
    count_parts,
    predict_parts,
    shape_ious,
    summarize,
)
from recon_ray.tasks.predictions import (
    PART_COLUMNS,
    PredictionFile,
    prediction_file,
    row_lists,
)
from recon_ray.train.feed.indexed import evaluation_batches
from recon_ray.train.metrics import gather_rows
from recon_ray.train.optim import parameter_groups
from recon_ray.train.runtime import EvaluationRuntime, Runtime
from recon_ray.weights.find import find_weights
from recon_ray.weights.load import build, initialize

#: Ranges of the published augmentation: one scale a cloud, one shift an axis.
SCALE, SHIFT = (0.8, 1.25), 0.1
#: Random numbers of evaluation, apart from those of training.
EVALUATION_STREAM = 2


# -- Points ------------------------------------------------------------------------------------


def normalize_valid(points: Tensor, valid: Tensor) -> Tensor:
    """Center and scale clouds to the unit sphere by their own points, not by the repeated ones.

    Args:
        points: (B, N, 3), of which the first ``valid`` of a row are its own.
        valid: (B,) int64.
    """
    own = _is_own(points, valid)[..., None]
    centered = points - (points * own).sum(dim=1, keepdim=True) / valid[:, None, None]
    radius = (torch.linalg.vector_norm(centered, dim=-1) * own[..., 0]).amax(dim=1)
    return centered / torch.where(radius > 0, radius, 1.0)[:, None, None]


def draw_with_replacement(valid: Tensor, count: int, source: RandomSource) -> Tensor:
    """Positions (B, count) of points drawn from the first ``valid`` (B,) ones, each at random."""
    numbers = random.uniform(source, len(valid), count, device=valid.device)
    return torch.minimum((numbers * valid[:, None]).long(), valid[:, None] - 1)


def draw_distinct(valid: Tensor, size: int, count: int, source: RandomSource) -> Tensor:
    """Positions (B, count) of different points, of the first ``valid`` (B,) of ``size`` ones.

    Where a cloud has too few, its random order is gone through again.
    """
    numbers = random.uniform(source, len(valid), size, device=valid.device)
    own = torch.arange(size, device=valid.device) < valid[:, None]
    order = numbers.masked_fill(~own, torch.inf).argsort(dim=1, stable=True)
    turns = torch.arange(count, device=valid.device) % valid[:, None]
    return order.gather(1, turns)


def augment(points: Tensor, source: RandomSource) -> Tensor:
    """Scale each cloud by one number, then shift it (published ranges)."""
    numbers = random.uniform(source, len(points), 1, 1, device=points.device)
    points = points * (SCALE[0] + (SCALE[1] - SCALE[0]) * numbers)
    return transforms.translate(points, source, distance=SHIFT)


def _is_own(points: Tensor, valid: Tensor) -> Tensor:
    return torch.arange(points.shape[1], device=points.device) < valid[:, None]


def _valid(batch: Batch) -> Tensor:
    """Return how many points of a cloud are its own: all in sets of clouds of one size."""
    if "valid_points" in batch:
        return batch["valid_points"].long()
    points = batch["points"]
    return torch.full((len(points),), points.shape[1], device=points.device)


# -- Scoring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scoring:
    """Scoring of a split.

    Attributes:
        table: Parts of every category.
        num_points: Points that the encoder is given.
        batch_size: Shapes a worker encodes at once.
        draw: ``replacement`` draws the points with replacement, others in every epoch, and scores
            those (published); ``own`` encodes different points, the same in every epoch, and scores
            every point of a shape once.
        seed: Seed of the draws.
        epoch: Epoch that the weights were trained for, which the draws with replacement follow.
        limit: Use the first shapes only.
        has_valid_points: Whether the set marks the points that are a cloud's own.
    """

    table: PartTable
    num_points: int
    batch_size: int
    draw: Literal["replacement", "own"]
    seed: int = 0
    epoch: int = 0
    limit: int | None = None
    has_valid_points: bool = True

    @property
    def options(self) -> BatchOptions:
        """Return the content of a batch."""
        counts = ("valid_points",) if self.has_valid_points else ()
        return BatchOptions(beside=("part_labels", *counts))

    def predict(
        self, model: PartSegmenter, batch: Batch, allowed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Parts that are predicted, true ones, which points count, and their places: each (B, N).

        Places are those in the stored cloud.

        Args:
            model: The model, in evaluation mode.
            batch: Batch on the model's device.
            allowed: (C, P) parts of every category, there too.
        """
        valid, parts = _valid(batch), batch["part_labels"].long()
        points = normalize_valid(batch["points"], valid)
        epoch = self.epoch if self.draw == "replacement" else 0
        ids, mine = batch["sample_id"], allowed[batch["label"]]
        source = SampleGenerator(self.seed, ids, epoch, stream=EVALUATION_STREAM)
        if self.draw == "replacement":
            chosen = draw_with_replacement(valid, self.num_points, source)
            log_probs = model(ops.gather_points(points, chosen), batch["label"])
            true, counts = parts.gather(1, chosen), torch.ones_like(chosen, dtype=torch.bool)
            return predict_parts(log_probs, mine), true, counts, chosen
        chosen = draw_distinct(valid, points.shape[1], self.num_points, source)
        features = model.encode_parts(ops.gather_points(points, chosen))
        log_probs = model.forward_head(features, points, batch["label"])
        places = torch.arange(points.shape[1], device=points.device).expand_as(parts)
        return predict_parts(log_probs, mine), parts, _is_own(points, valid), places


def score_split(
    model: PartSegmenter,
    runtime: EvaluationRuntime,
    split: str,
    scoring: Scoring,
    file: PredictionFile | None = None,
) -> PartScores:
    """Score a split, every shape once for any number of workers; the same on every rank.

    Args:
        model: The model, in evaluation mode on the device.
        runtime: Interface of the worker.
        split: The split.
        scoring: How.
        file: Takes the predictions, batch by batch.
    """
    device, table = runtime.device, scoring.table
    ious = [torch.zeros(0, dtype=torch.float64, device=device)]
    labels = [torch.zeros(0, dtype=torch.int64, device=device)]
    totals = torch.zeros(1, table.num_parts, 3, dtype=torch.int64, device=device)

    def score(*values: Tensor) -> dict[str, Tensor]:
        batch = dict(zip(names, values, strict=True))
        predicted, true, counted, places = scoring.predict(model, batch, allowed)
        counts = count_parts(predicted, true, counted, table.num_parts)
        ious = shape_ious(counts, allowed[batch["label"]])
        if file is None:
            return {"counts": counts, "ious": ious}
        shown = torch.stack([places, predicted, true, counted.long()], dim=1)  # (B, 4, N)
        return {"counts": counts, "ious": ious, "shown": shown.int()}

    allowed = table.allowed().to(device)
    names = ("sample_id", "points", "label", *scoring.options.beside)
    scored = runtime.inference.prepare(score, device)
    size, limit = scoring.batch_size, scoring.limit
    mine = batches_of(runtime, split, size, limit=limit, options=scoring.options)
    for batch, rows in _as_many(mine, runtime, split, scoring):
        found = scored(*(batch[name] for name in names))
        found = {name: value[:rows] for name, value in found.items()}
        ious.append(found["ious"])
        labels.append(batch["label"][:rows])
        totals += found["counts"].sum(dim=0)
        if file is not None:
            _write(file, split, batch["sample_id"][:rows], found)
    return summarize(
        gather_rows(torch.cat(ious)),
        gather_rows(torch.cat(labels)),
        gather_rows(totals).sum(dim=0),
        table.categories,
    )


def _as_many(
    batches: Iterator[Batch], runtime: EvaluationRuntime, split: str, scoring: Scoring
) -> Iterator[tuple[Batch, int]]:
    """Yield equally many batches on every rank, and how many rows of each count.

    A rank that has fewer goes on with one shape of which no row counts.
    """
    table = runtime.table(split)
    most = -(-min(len(table), scoring.limit or len(table)) // runtime.world_size)
    for _, batch in zip_longest(range(0, most, scoring.batch_size), batches):
        if batch is not None:
            yield batch, len(batch["sample_id"])
            continue
        for one in evaluation_batches(
            table, scoring.options, batch_size=1, limit=1, rank=0, world_size=1
        ):
            yield {name: value.to(runtime.device) for name, value in one.items()}, 0


def _write(
    file: PredictionFile, split: str, sample_ids: Tensor, found: Mapping[str, Tensor]
) -> None:
    """Write the predictions of a batch of every worker, in order of sample id."""
    ids = gather_rows(sample_ids)
    order = ids.argsort()
    shown, ious = (gather_rows(found[name])[order].numpy() for name in ("shown", "ious"))
    places, parts, true, counted = shown.swapaxes(0, 1)
    kept = counted.astype(bool)
    columns = {
        "iou": pa.array(ious),
        "points": row_lists(places, kept),
        "parts": row_lists(parts.astype(np.uint8), kept),
        "true_parts": row_lists(true.astype(np.uint8), kept),
    }
    file.add(split, ids[order].numpy(), columns)


@dataclass(frozen=True)
class PartEvaluation:
    """Scoring of finished weights on a split.

    Attributes:
        weights: Run, checkpoint or file of a part segmentation model.
        sizes: Constructor arguments that the shapes in a foreign file do not show.
        split: Name of the split.
        scoring: How.
    """

    weights: str
    sizes: dict[str, Any]
    split: str
    scoring: Scoring

    def run(self, runtime: EvaluationRuntime) -> dict[str, Any]:
        """Write the predictions; return the metrics and the table of categories."""
        model, _ = build(find_weights(self.weights), **self.sizes)
        assert isinstance(model, PartSegmenter)
        model = runtime.inference.place(model, runtime.device)
        with prediction_file(runtime, PART_COLUMNS) as file:
            scores = score_split(model, runtime, self.split, self.scoring, file)
        return {"metrics": scores.metrics(), "categories": scores.record()}


# -- Training ----------------------------------------------------------------------------------


class PartSegModule(nn.Module):
    """The model with its loss; the training loop calls it."""

    def __init__(self, model: PartSegmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, source: SampleGenerator) -> dict[str, Tensor]:
        """Return the named losses of a batch."""
        log_probs = self.model(batch["points"], batch["label"], source)
        return segmentation_losses(log_probs, batch["part_labels"])


@dataclass(eq=False)
class PartSegmentationTask:
    """Training of one part segmentation model on one prepared set.

    Attributes:
        config: The job's configuration.
        sizes: Constructor arguments of the model.
        scoring: How splits are scored.
        weights: Absolute place of the weights to start from; None is from scratch.
        start: Their record.
    """

    name = "partseg"

    config: PartsegConfig
    sizes: dict[str, Any]
    scoring: Scoring
    weights: str | None = None
    start: dict[str, Any] | None = None

    def architecture(self) -> dict[str, Any]:
        """Constructor arguments of the model."""
        return whole_arguments("partseg", self.sizes)

    def build(self) -> nn.Module:
        """Make the model with its loss and start it from the weights, if there are any."""
        model = PartSegmenter(**self.sizes)
        if self.weights is not None:
            initialize(model, find_weights(self.weights))
        return PartSegModule(model)

    def stored_model(self, module: nn.Module) -> PartSegmenter:
        """Return the model without its loss."""
        assert isinstance(module, PartSegModule)
        return module.model

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Groups by the published rule; the head learns ten times as fast."""
        optim = self.config.optim
        return parameter_groups(
            self.stored_model(module),
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            head=is_part_head_parameter,
        )

    def on_device(self, device: torch.device) -> None:
        """There is nothing beside the model."""

    def prepare_on_device(self, batch: Batch, source: SampleGenerator) -> Batch:
        """Normalize by all points of a cloud, draw some with replacement, scale and shift them."""
        valid = _valid(batch)
        points = normalize_valid(batch["points"], valid)
        chosen = draw_with_replacement(valid, self.config.data.num_points, source)
        return {
            "points": augment(ops.gather_points(points, chosen), source),
            "part_labels": batch["part_labels"].long().gather(1, chosen),
            "label": batch["label"],
        }

    def evaluate(self, module: nn.Module, runtime: Runtime, *, when: str) -> dict[str, float]:
        """Score the untrained model; the trained one is scored when the best epoch is known."""
        if when != "before":
            return {}
        config = self.config
        scores = score_split(
            self.stored_model(module), runtime, config.data.test_split, self.scoring
        )
        return {f"{name}_before": value for name, value in scores.metrics().items()}

    def validate(self, module: nn.Module, runtime: Runtime, *, epoch: int) -> dict[str, float]:
        """Score the split by which the best epoch is chosen."""
        split, scoring = self.config.selection_split, replace(self.scoring, epoch=epoch)
        if split is None:
            return {}
        return score_split(self.stored_model(module), runtime, split, scoring).metrics()

    def records(self) -> dict[str, Any]:
        """Categories and their parts."""
        table = self.scoring.table
        parts = dict(zip(table.categories, map(list, table.parts), strict=True))
        points = self.config.data.num_points
        counts = {"num_points": points, "part_points": points}
        return {"classes": list(table.categories), "parts": parts, **counts}
