"""Normalization, choice and augmentation of the points of a data set, by its card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.points import random, transforms
from recon_ray.points.random import SampleGenerator
from recon_ray.protocols import REFERENCE_SKIP
from recon_ray.tasks.feature_extraction import Normalization, PointChoice
from recon_ray.tasks.linear_probe.config import FrozenWeightsConfig
from recon_ray.weights.weight_files import LoadedWeights

Augmentation = Literal["rotate", "scale_translate", "none"]
Transform = Literal["rotate", "scale", "none"]


@dataclass(frozen=True)
class CloudPipeline:
    """Steps from stored clouds to the input of a classifier.

    The published order: normalize the whole cloud, thin it evenly to some candidates, pick points
    of these at random, turn or stretch. In training each epoch thins from another point on.

    Attributes:
        num_points: Points of the input.
        normalize: Centre and scale the stored cloud (``whole``), the chosen points (``subset``), or
            neither.
        augment: Augmentation of the chosen points in training.
        transform: Augmentation of them in voting.
        min_sq_norm: Skip rule of the sampling.
    """

    num_points: int
    normalize: Normalization
    augment: Augmentation = "none"
    transform: Transform = "none"
    min_sq_norm: float = -1.0

    def train(self, points: Tensor, source: SampleGenerator) -> Tensor:
        """Draw points of (B, N, 3) stored clouds and augment them.

        Thinning starts at a point of its own for every sample and epoch: the published loaders
        shuffle the points of a training cloud first.
        """
        start = random.randint(source, points.shape[1], len(points), device=points.device)
        points = self.pick(self.candidates(points, start), source)
        if self.augment == "rotate":
            return transforms.rotate_y(points, source)
        if self.augment == "scale_translate":
            return transforms.scale_and_translate(points, source)
        return points

    def test(self) -> PointChoice:
        """Return the choice of an evaluation without voting: the farthest points."""
        skip = self.min_sq_norm
        return PointChoice(self.num_points, how="fps", normalize=self.normalize, min_sq_norm=skip)

    def probes(self, *, farthest: bool, seed: int) -> PointChoice:
        """Return the choice of linear probes: the farthest points as published, else random ones.

        Random ones are what a pre-training, its own probes and zero-shot read.
        """
        return self.test() if farthest else replace(self.test(), how="random", seed=seed)

    def zeroshot(self, *, resamples: bool, seed: int) -> PointChoice:
        """Return the choice of zero-shot: points resampled as published, else random ones."""
        how: Literal["resample", "random"] = "resample" if resamples else "random"
        return replace(self.test(), how=how, seed=seed)

    def candidates(self, points: Tensor, start: Tensor | None = None) -> Tensor:
        """Thin (B, N, 3) stored clouds evenly, as :func:`transforms.thin` does.

        Args:
            points: The clouds.
            start: (B,) index of the first point that is kept; 0 by default.
        """
        if self.normalize == "whole":
            points = transforms.normalize(points)
        wanted = transforms.candidate_points(self.num_points)
        return transforms.thin(points, wanted, start=start, min_sq_norm=self.min_sq_norm)

    def pick(self, candidates: Tensor, source: SampleGenerator) -> Tensor:
        """Pick points of thinned clouds at random, in random order."""
        points = transforms.random_subset(candidates, self.num_points, source)
        return transforms.normalize(points) if self.normalize == "subset" else points

    def vote(self, candidates: Tensor, source: SampleGenerator) -> Tensor:
        """Return one subset of thinned clouds, turned or stretched, for a voting repeat."""
        points = self.pick(candidates, source)
        if self.transform == "rotate":
            return transforms.rotate_y(points, source)
        return transforms.scale(points, source) if self.transform == "scale" else points


def pipeline_of(
    card: Mapping[str, Any] | None,
    *,
    num_points: int,
    skips_origin: bool,
    normalize: Literal["auto", "whole", "subset", "none"] = "auto",
    augment: Literal["auto", "rotate", "scale_translate", "none"] = "auto",
    transform: Literal["auto", "rotate", "scale", "none"] = "auto",
) -> CloudPipeline:
    """Resolve automatic options by the card of the set (spec of the published runs).

    Args:
        card: The manifest's card; None for a set that is not a published one.
        num_points: Points of the input.
        skips_origin: Whether sampling skips points at the origin.
        normalize: ``auto`` is the card's, else ``whole``.
        augment: ``auto`` is scale_translate for ModelNet, else rotate (few-shot episodes too).
        transform: ``auto`` is scale for ModelNet, rotate for PB_T50_RS, else none.
    """
    name = "" if card is None else str(card["name"])
    is_modelnet = name.startswith("modelnet")
    if normalize == "auto":
        normalize = "whole" if card is None else card["normalization"]
    if augment == "auto":
        augment = "scale_translate" if is_modelnet else "rotate"
    if transform == "auto":
        by_turning = name == "scanobjectnn_pb_t50_rs"
        transform = "scale" if is_modelnet else "rotate" if by_turning else "none"
    skip = REFERENCE_SKIP if skips_origin else -1.0
    return CloudPipeline(num_points, normalize, augment, transform, skip)


def evaluated_clouds(
    config: FrozenWeightsConfig, prepared: PreparedSet | None, weights: LoadedWeights
) -> CloudPipeline:
    """Return the pipeline of the jobs that evaluate without training; see :func:`pipeline_of`.

    A set without a card, and a model that was trained on clouds as they are, have the normalization
    of the training.
    """
    card = None if prepared is None else prepared.manifest.get("card")
    asked, trained = config.data.normalize, weights.extra.get("normalize")
    return pipeline_of(
        card,
        num_points=config.data.num_points,
        skips_origin=config.flags.skips_origin,
        normalize=trained_normalization(card, trained) if asked == "auto" else asked,
    )


def trained_normalization(
    card: Mapping[str, Any] | None, trained: Normalization | None
) -> Literal["auto", "whole", "subset", "none"]:
    """Return the normalization of clouds for a model, by the card of their set and its training."""
    return "auto" if trained is None or (card is not None and trained != "none") else trained
