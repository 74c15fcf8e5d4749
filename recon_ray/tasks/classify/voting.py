"""Accuracy of a classifier, plain and by voting over random subsets of each cloud."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from recon_ray.errors import CheckpointError
from recon_ray.points import transforms
from recon_ray.points.random import SampleGenerator
from recon_ray.runs.folder import START_FRESH_HINT
from recon_ray.tasks.classify.confusion import confusion_matrix
from recon_ray.tasks.feature_extraction import batches_of
from recon_ray.tasks.point_pipeline import CloudPipeline
from recon_ray.tasks.predictions import (
    CLASS_COLUMNS,
    RankedClasses,
    best_classes,
    prediction_file,
)
from recon_ray.train.metrics import gather_rows, is_distributed
from recon_ray.train.runtime import EvaluationRuntime
from recon_ray.weights.find import find_weights
from recon_ray.weights.load import build

logger = logging.getLogger(__name__)

#: File of a run with the accuracy of every finished round.
ROUNDS = "votes.json"


@dataclass
class _Shapes:
    """A worker's clouds, thinned once for all rounds."""

    ids: Tensor  # (B,)
    labels: Tensor  # (B,), negative for a cloud without a class
    plain: Tensor  # (B, n, 3) points that the plain accuracy reads
    candidates: Tensor  # (B, m, 3) points that every voting repeat picks from
    sampled: int  # clouds that were thinned

    def batches(self, size: int) -> Iterator[slice]:
        """Return slices of at most ``size`` clouds."""
        return (slice(start, start + size) for start in range(0, len(self.ids), size))

    def labeled(self) -> _Shapes:
        """Return the clouds with a class."""
        has_class = self.labels >= 0
        if bool(has_class.all()):  # no copy
            return self
        names = ("ids", "labels", "plain", "candidates")
        return replace(self, **{name: getattr(self, name)[has_class] for name in names})


@dataclass(frozen=True)
class VotingEvaluation:
    """Plain accuracy, and rounds of voting: the mean logits of several random subsets decide.

    Random subsets depend on (seed, round, repeat, sample) alone, so neither the number of workers
    nor an interruption changes a round.

    Attributes:
        weights: The classifier, as :func:`recon_ray.weights.find.find_weights` has it.
        sizes: Constructor arguments that the shapes in the file do not show.
        split: The split.
        pipeline: How clouds are brought to the classifier.
        classes: Names of the classes.
        votes: Rounds.
        repeats: Subsets whose logits are averaged in a round.
        batch_size: Clouds that are encoded at once.
        seed: Seed of the subsets.
        save_every_seconds: Seconds between two records of finished rounds.
        inputs: Hashes of what is read; rounds that were recorded of others do not count.
    """

    weights: str
    sizes: dict[str, Any]
    split: str
    pipeline: CloudPipeline
    classes: tuple[str, ...]
    votes: int
    repeats: int
    batch_size: int
    seed: int
    save_every_seconds: float = 30.0
    inputs: Mapping[str, str] = field(default_factory=dict)

    def run(self, runtime: EvaluationRuntime) -> dict[str, Any]:
        """Write the plain predictions; return ``confusion``, ``rounds`` and ``counts``.

        ``confusion`` is of the plain predictions of labeled clouds, as the accuracies of ``rounds``
        are of labeled ones.

        Raises:
            CheckpointError: If the weights cannot be read, or something not be written.
        """
        weights = find_weights(self.weights)
        model, _ = build(weights, **self.sizes)
        model = runtime.inference.place(model, runtime.device)
        found = self.measure(model, runtime, source=weights.source)
        with prediction_file(runtime, CLASS_COLUMNS) as file:
            file.add_classes(self.split, found.pop("ranked"), self.classes)
        return found

    def measure(
        self, model: nn.Module, runtime: EvaluationRuntime, *, source: str
    ) -> dict[str, Any]:
        """Measure a classifier, in evaluation mode on the device, as :meth:`run` does.

        ``ranked`` are the :class:`RankedClasses` of all clouds.

        Raises:
            CheckpointError: If the rounds cannot be recorded.
        """
        shapes = self._read(runtime)
        ranked = self._plain(model, shapes, runtime)
        labeled = shapes.labeled()
        clouds, sampled = _sums(runtime, len(labeled.ids), shapes.sampled)
        rounds = self._rounds(model, labeled, runtime, clouds, source)
        has_class, predicted = ranked.labels >= 0, ranked.classes[:, 0]
        matrix = confusion_matrix(ranked.labels[has_class], predicted[has_class], len(self.classes))
        return {
            "confusion": matrix.tolist(),
            "ranked": ranked,
            "rounds": rounds,
            "counts": {
                "clouds": clouds,
                "unlabeled": len(ranked.labels) - clouds,
                "sampled_clouds": sampled,
                "encoded_clouds": clouds * self.votes * self.repeats,
            },
        }

    def _read(self, runtime: EvaluationRuntime) -> _Shapes:
        parts: dict[str, list[Tensor]] = {"ids": [], "labels": [], "plain": [], "candidates": []}
        sampled = 0
        for batch in batches_of(runtime, self.split, self.batch_size):
            points = batch["points"]
            plain, candidates = self._thin(points)
            sampled += len(points) if points.shape[1] > self.pipeline.num_points else 0
            parts["ids"].append(batch["sample_id"])
            parts["labels"].append(batch["label"])
            parts["plain"].append(plain)
            parts["candidates"].append(candidates)
        if not parts["ids"]:  # more workers than clouds
            none = torch.zeros(0, dtype=torch.int64, device=runtime.device)
            clouds = torch.zeros(0, self.pipeline.num_points, 3, device=runtime.device)
            return _Shapes(none, none, clouds, clouds, 0)
        return _Shapes(**{name: torch.cat(value) for name, value in parts.items()}, sampled=sampled)

    def _thin(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points of the plain accuracy, and those that voting picks from.

        Sampling is incremental: the first n candidates are those of sampling n.
        """
        pipeline, count = self.pipeline, self.pipeline.num_points
        candidates = pipeline.candidates(points)
        if candidates.shape[1] < points.shape[1]:
            plain = candidates[:, :count]
        else:  # in stored order
            plain = transforms.thin(candidates, count, min_sq_norm=pipeline.min_sq_norm)
        if pipeline.normalize == "subset":
            plain = transforms.normalize(plain)
        return plain, candidates

    def _plain(
        self, model: nn.Module, shapes: _Shapes, runtime: EvaluationRuntime
    ) -> RankedClasses:
        """Classify each cloud once; all clouds, on every rank."""
        classify = runtime.inference.prepare(
            lambda points: {"logits": model(points)}, runtime.device
        )
        batches = shapes.batches(self.batch_size)
        logits = [classify(shapes.plain[part])["logits"] for part in batches]
        logits.append(torch.zeros(0, len(self.classes), device=runtime.device))
        whole, numbers = gather_rows(torch.cat(logits)), (shapes.ids, shapes.labels)
        ids, labels = (gather_rows(value).numpy() for value in numbers)
        best, order = best_classes(whole), np.argsort(ids)
        scores = whole.softmax(dim=-1).gather(1, best)
        return RankedClasses(*(v[order] for v in (ids, labels, best.numpy(), scores.numpy())))

    def _rounds(
        self,
        model: nn.Module,
        shapes: _Shapes,
        runtime: EvaluationRuntime,
        clouds: int,
        source: str,
    ) -> list[float]:
        """Accuracy of every round; those that an earlier attempt has recorded are not repeated.

        Records of other weights or data do not count: a run that went on has another best
        checkpoint.
        """
        rounds = self._recorded(runtime, source)[: self.votes]
        vote = runtime.inference.prepare(partial(self._vote, model), runtime.device)
        saved = time.monotonic()
        for number in range(len(rounds), self.votes):
            right = torch.zeros((), dtype=torch.int64, device=runtime.device)
            for part in shapes.batches(max(1, self.batch_size // self.repeats)):
                ids = shapes.ids[part]
                predicted = vote(shapes.candidates[part], ids, torch.full_like(ids[0], number))
                right += (predicted["class"] == shapes.labels[part]).sum()
            rounds.append(_sums(runtime, int(right))[0] / clouds)
            due = time.monotonic() - saved > self.save_every_seconds or len(rounds) == self.votes
            if runtime.rank == 0 and due:
                record = {**self._origin(source), "rounds": rounds}
                runtime.folder.write(ROUNDS, json.dumps(record) + "\n")
                logger.info("vote %d/%d: %.4f", number + 1, self.votes, rounds[-1])
                saved = time.monotonic()
        return rounds

    def _origin(self, source: str) -> dict[str, Any]:
        """Return the identity of recorded rounds."""
        return {"weights": source, "inputs": dict(self.inputs)}

    def _vote(
        self, model: nn.Module, candidates: Tensor, ids: Tensor, number: Tensor
    ) -> dict[str, Tensor]:
        """Classes that the mean logits of one round choose, all repeats in one batch."""
        subsets = []
        for repeat in range(self.repeats):
            source = SampleGenerator(self.seed, ids, number, stream=repeat)
            subsets.append(self.pipeline.vote(candidates, source))
        logits: Tensor = model(torch.cat(subsets))
        logits = logits.float().unflatten(0, (self.repeats, -1))
        return {"class": logits.mean(dim=0).argmax(dim=-1)}

    def _recorded(self, runtime: EvaluationRuntime, source: str) -> list[float]:
        """Return the rounds recorded in the run's folder, on every rank."""
        text = runtime.folder.read(ROUNDS) if runtime.rank == 0 and self.votes else None
        try:
            record = {"weights": None, "rounds": []} if text is None else json.loads(text)
            rounds = [float(value) for value in record.pop("rounds")]
            rounds = rounds if record == self._origin(source) else []
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{runtime.folder.uri}/{ROUNDS}: it is damaged; {START_FRESH_HINT}"
            ) from error
        if is_distributed():
            box = [rounds]
            dist.broadcast_object_list(box, src=0)
            rounds = box[0]
        return rounds


def vote_summary(rounds: list[float]) -> dict[str, float]:
    """``accuracy_vote_mean``, ``_max`` and ``_std`` of rounds; empty without any."""
    if not rounds:
        return {}
    values = np.asarray(rounds)
    return {
        "accuracy_vote_mean": float(values.mean()),
        "accuracy_vote_max": float(values.max()),
        "accuracy_vote_std": float(values.std()),
    }


def _sums(runtime: EvaluationRuntime, *counts: int) -> list[int]:
    """Add numbers over all workers."""
    packed = torch.tensor(counts, dtype=torch.int64, device=runtime.device)
    if is_distributed():
        dist.all_reduce(packed)
    return [int(count) for count in packed]
