"""Features of all clouds of a split, extracted once, by any number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from recon_ray.data.loading.batches import Batch, BatchOptions
from recon_ray.data.loading.prefetch import batches_on
from recon_ray.errors import DataError
from recon_ray.models.batch_norm import estimate_statistics
from recon_ray.models.cloud import CloudModel, EncoderModel
from recon_ray.models.recon import Embedder
from recon_ray.points import transforms
from recon_ray.points.random import SampleGenerator
from recon_ray.tasks.linear_probe.config import FrozenWeightsConfig
from recon_ray.tasks.start_weights import open_start
from recon_ray.train.feed.indexed import evaluation_batches
from recon_ray.train.metrics import gather_rows
from recon_ray.train.runtime import EvaluationRuntime
from recon_ray.weights.find import find_weights
from recon_ray.weights.load import compare, construct, initialize
from recon_ray.weights.weight_files import LoadedWeights

#: Encodes (B, N, 3) clouds: name to (B, ...) features.
Encode: TypeAlias = Callable[[Tensor], Mapping[str, Tensor]]
FrozenT = TypeVar("FrozenT", bound=FrozenWeightsConfig)
#: Batches whose statistics an untrained network is given.
BATCHES_SEEN = 10
Normalization: TypeAlias = Literal["whole", "subset", "none"]


@dataclass(frozen=True)
class PointChoice:
    """The choice of points of a stored cloud in an evaluation; the same ones every time.

    Attributes:
        num_points: Number of points.
        how: ``fps`` takes the farthest points, ``resample`` thins evenly and then picks at random
            (:func:`recon_ray.points.transforms.resample`), ``random`` picks at random. Random picks
            depend on the seed and the sample.
        normalize: Centre and scale the stored cloud (``whole``), the chosen points (``subset``), or
            neither.
        min_sq_norm: Skip rule of the sampling.
        seed: Seed of random picks.
    """

    num_points: int
    how: Literal["fps", "resample", "random"] = "random"
    normalize: Normalization = "subset"
    min_sq_norm: float = -1.0
    seed: int = 0

    def samples(self, stored: int) -> bool:
        """Return whether only a part of the points of a cloud is chosen."""
        return self.num_points < stored

    def __call__(self, points: Tensor, sample_ids: Tensor) -> Tensor:
        """Choose and normalize points of (B, N, 3) stored clouds: (B, num_points, 3)."""
        if self.normalize == "whole":
            points = transforms.normalize(points)
        points = self._chosen(points, SampleGenerator(self.seed, sample_ids))
        return transforms.normalize(points) if self.normalize == "subset" else points

    def _chosen(self, points: Tensor, source: SampleGenerator) -> Tensor:
        count, skip = self.num_points, self.min_sq_norm
        if self.how == "fps":
            return transforms.thin(points, count, min_sq_norm=skip)
        if self.how == "resample":
            return transforms.resample(points, count, source, min_sq_norm=skip)
        is_all = not self.samples(points.shape[1])
        return points if is_all else transforms.random_subset(points, count, source)


@dataclass(frozen=True, kw_only=True)
class FrozenEvaluation:
    """Measurement of frozen weights on whole splits; small and picklable.

    Attributes:
        weights: Run, checkpoint or file.
        sizes: Constructor arguments that a foreign file does not hold.
        choice: Choice of the points.
        batch_size: Clouds a worker encodes at once.
        limit: Use the first rows of a split only.
    """

    weights: str
    sizes: Mapping[str, Any]
    choice: PointChoice
    batch_size: int
    limit: int | None = None

    def extract(
        self,
        encode: Encode,
        runtime: EvaluationRuntime,
        split: str,
        **options: Any,  # noqa: ANN401
    ) -> dict[str, np.ndarray]:
        """Encode every cloud of a split; see :func:`extract_features` for further options."""
        batch_size, limit = self.batch_size, self.limit
        return extract_features(
            encode, runtime, split, self.choice, batch_size=batch_size, limit=limit, **options
        )


@dataclass
class Tally:
    """Numbers of sampled and encoded clouds, over all workers."""

    sampled_clouds: int = 0
    encoded_clouds: int = 0

    def add(self, *, clouds: int, sampled: bool, encodings: int) -> None:
        """Count a split."""
        self.sampled_clouds += clouds if sampled else 0
        self.encoded_clouds += clouds * encodings

    def counts(self) -> dict[str, int]:
        """Return the numbers by name."""
        return dict(vars(self))


def batches_of(
    runtime: EvaluationRuntime,
    split: str,
    batch_size: int,
    *,
    limit: int | None = None,
    options: BatchOptions = BatchOptions(),  # noqa: B008 - frozen
) -> Iterator[Batch]:
    """Return this worker's rows of a split, or of its first ``limit`` rows, on its device."""
    make = partial(
        evaluation_batches,
        runtime.table(split),
        options,
        batch_size=batch_size,
        limit=limit,
        rank=runtime.rank,
        world_size=runtime.world_size,
        pinned=runtime.device.type == "cuda",
    )
    return batches_on(make, runtime.device)


def extract_features(
    encode: Encode,
    runtime: EvaluationRuntime,
    split: str,
    choice: PointChoice,
    *,
    batch_size: int,
    limit: int | None = None,
    tally: Tally | None = None,
    encodings: int = 1,
    labeled: bool = True,
) -> dict[str, np.ndarray]:
    """Encode every cloud of a split once and return all features on every rank.

    Args:
        encode: Returns the features of a batch, without the names ``sample_id`` and ``label``.
        runtime: Interface of the worker.
        split: Name of the split.
        choice: Choice of the points.
        batch_size: Clouds a worker encodes at once.
        limit: Use the first rows only.
        tally: Counts of clouds, which are increased.
        encodings: Number of models that ``encode`` runs on a cloud.
        labeled: Leave out clouds without a class.

    Returns:
        ``sample_id``, ``label`` and the features, in order of sample id.
    """
    table = runtime.table(split)
    features = runtime.inference.prepare(
        lambda points, ids: encode(choice(points, ids)), runtime.device
    )

    def features_of(batch: Batch) -> dict[str, Tensor]:
        numbers = {name: batch[name] for name in ("sample_id", "label")}
        return {**numbers, **features(batch["points"], batch["sample_id"])}

    batches = batches_of(runtime, split, batch_size, limit=limit)
    rows = [features_of(batch) for batch in batches]
    if not rows:  # more workers than clouds: no rows from this one, of the same widths
        one = evaluation_batches(table, BatchOptions(), batch_size=1, rank=0, world_size=1)
        first = {name: value.to(runtime.device) for name, value in next(iter(one)).items()}
        rows = [{name: value[:0] for name, value in features_of(first).items()}]
    mine = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    mine = _in_order(mine, labeled=labeled)  # on the device: sorting the host's copy takes longer
    if tally is not None:
        stored = table.take(np.zeros(1, dtype=np.int64), {"points"})["points"].shape[1]
        clouds = min(len(table), limit or len(table))
        tally.add(clouds=clouds, sampled=choice.samples(stored), encodings=encodings)
    whole = {name: gather_rows(value) for name, value in mine.items()}
    if runtime.world_size > 1:
        whole = _in_order(whole)
    return {name: value.numpy() for name, value in whole.items()}


def see_clouds(
    model: EncoderModel,
    runtime: EvaluationRuntime,
    split: str,
    choice: PointChoice,
    batch_size: int,
) -> None:
    """Set the batch-norm statistics of an untrained model to those of the first clouds of a split.

    With mean 0 and variance 1 in their place its features hardly differ from cloud to cloud, and
    training would seem to gain what the statistics do. Every worker takes the same clouds.
    """
    make = partial(
        evaluation_batches,
        runtime.table(split),
        BatchOptions(),
        batch_size=batch_size,
        limit=BATCHES_SEEN * batch_size,
        rank=0,
        world_size=1,
    )

    def observe() -> None:
        for batch in batches_on(make, runtime.device):
            model.forward_features(choice(batch["points"], batch["sample_id"]))

    estimate_statistics(model.to(runtime.device), observe)


def _in_order(rows: Mapping[str, Tensor], *, labeled: bool = False) -> dict[str, Tensor]:
    """Sort by sample id; leave out rows without a class if ``labeled``."""
    order = torch.argsort(rows["sample_id"])
    if labeled:
        order = order[rows["label"][order] >= 0]
    return {name: value[order] for name, value in rows.items()}


def without_last_batch(
    features: Mapping[str, np.ndarray], batch_size: int, *, seed: int
) -> dict[str, np.ndarray]:
    """Leave out as many random samples as an incomplete last batch has (published loaders).

    Args:
        features: Arrays of B rows each.
        batch_size: Samples of a batch; fewer samples than that are all left out.
        seed: Seed of the choice.
    """
    count = len(features["label"])
    kept = np.random.default_rng([seed, count]).permutation(count)[: count - count % batch_size]
    return {name: value[np.sort(kept)] for name, value in features.items()}


def check_cloud(name: str, num_points: int, model: CloudModel) -> None:
    """Refuse a cloud with fewer points than the model cuts its patches from.

    Raises:
        DataError: Naming the cloud.
    """
    if num_points < max(model.num_groups, model.group_size):
        raise DataError(
            f"{name}: {num_points} points are too few for the model's {model.num_groups} patches "
            f"of {model.group_size} points; leave it out"
        )


def open_embedder(config: FrozenT) -> tuple[FrozenT, str, LoadedWeights, Embedder]:
    """Read the weights of a configuration and check that they hold a whole encoder.

    Returns:
        The configuration with what it takes over from their training, their absolute place, the
        weights, and the encoder without them.

    Raises:
        CheckpointError: If they cannot be read, or lack a part.
        ConfigError: If there are none, or they do not record their number of points.
    """
    config, place, weights = open_start(config)
    model = construct("embedder", weights)
    assert isinstance(model, Embedder)
    compare(model, weights, strict=True)
    return config, place, weights, model


def load_embedder(
    weights: str,
    *,
    trained: bool = True,
    torch_init: bool = False,
    **sizes: Any,  # noqa: ANN401 - constructor arguments
) -> Embedder:
    """Make the encoder and projections of weights, in evaluation mode, on the CPU.

    Args:
        weights: Run folder, checkpoint or file.
        trained: Load the weights; otherwise only their architecture is used, freshly drawn from
            torch's default generator.
        torch_init: Draw them as the published downstream networks, by torch's defaults.
        sizes: Constructor arguments that a foreign file does not hold.

    Raises:
        CheckpointError: If they cannot be read, or lack a part.
    """
    found = find_weights(weights, **sizes)
    model = construct("embedder", found, init="reference" if torch_init else "scratch")
    assert isinstance(model, Embedder)
    if trained:
        initialize(model, found, strict=True)
    return model.eval()
