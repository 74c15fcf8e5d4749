"""Rows of prepared sets in this process, in the object store, or as a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from recon_ray.cluster.training_job import Mode, TrainingJob
from recon_ray.data.format.prepared import PreparedSet, Split
from recon_ray.data.format.stored_features import StoredFeatures
from recon_ray.data.loading.batches import IndexedTable
from recon_ray.data.loading.stream import SplitBlocks, put_blocks, reordered, stream_dataset
from recon_ray.runs.checkpoint import CheckpointStore


def read_tables(
    named: Mapping[str, tuple[PreparedSet, str]], columns: Sequence[str]
) -> dict[str, IndexedTable]:
    """Read splits of one or several sets into this process."""
    return {
        name: IndexedTable([prepared.read(split, columns=columns)])
        for name, (prepared, split) in named.items()
    }


def put_tables(
    named: Mapping[str, tuple[PreparedSet, str]], columns: Sequence[str]
) -> dict[str, SplitBlocks]:
    """Read splits of one or several sets into the object store."""
    blocks: dict[str, SplitBlocks] = {}
    for path in {prepared.path for prepared, _ in named.values()}:
        wanted = {name: (p, split) for name, (p, split) in named.items() if p.path == path}
        splits = [prepared.splits[split] for prepared, split in wanted.values()]
        stored = put_blocks(splits, columns, with_views=())
        blocks |= {name: stored[split] for name, (_, split) in wanted.items()}
    return blocks


def training_datasets(job: TrainingJob, mode: Mode) -> dict[str, Any]:
    """Return the datasets of whole epochs and of an unfinished one; none in mode ``shared``."""
    if mode == "shared":
        return {}
    source = _StreamSource(
        job.train_split,
        job.options.columns,
        job.uses_views,
        job.features,
        job.config.run.seed,
        job.folder.checkpoints,
    )
    train: Any = source.whole
    if mode == "cached":
        train = reordered(source.whole().materialize(), seed=source.order_seed())
    return {"train": train, "resume": source.rest}


@dataclass(frozen=True)
class _StreamSource:
    """Factory of the datasets; Ray Train calls it again whenever the workers start anew."""

    split: Split
    columns: tuple[str, ...]
    views: bool
    features: tuple[StoredFeatures, ...]
    seed: int
    checkpoints: str

    def whole(self) -> ray.data.Dataset:
        """Return all rows of an epoch."""
        return self._dataset(used=None)

    def rest(self) -> ray.data.Dataset:
        """Return the rows that the unfinished epoch of the newest checkpoint has not used."""
        seen = self._progress().get("seen")
        return self._dataset(used=None if seen is None else np.asarray(seen))

    def order_seed(self) -> int:
        """Return the seed of the order from here on; without the epoch a restart repeats it."""
        return self.seed + int(self._progress().get("epoch", 0))

    def _dataset(self, used: np.ndarray | None) -> ray.data.Dataset:
        return stream_dataset(
            self.split,
            self.columns,
            views=self.views,
            features=self.features,
            seed=self.order_seed(),
            used=used,
        )

    def _progress(self) -> Mapping[str, Any]:
        found = CheckpointStore(self.checkpoints).load_latest()
        return {} if found is None else found.train["progress"]
