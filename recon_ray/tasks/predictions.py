"""Predictions of an evaluation, one row a shape, in ``predictions.parquet`` of its run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from recon_ray.data.loading.batches import BatchOptions
from recon_ray.train.runtime import EvaluationRuntime

PREDICTIONS = "predictions.parquet"
#: Columns that name the shapes.
NAMES = ("object_id", "category")
#: Classes that are written of each shape, those of the highest scores.
TOP = 5
#: Rows that are put together at once.
CHUNK = 8192

_SHAPE = {
    "sample_id": pa.int64(),
    "object_id": pa.string(),
    "split": pa.string(),
    "label": pa.int32(),
    "category": pa.string(),
}
CLASS_COLUMNS = {
    "predicted": pa.string(),
    "score": pa.float32(),
    "top5": pa.list_(pa.string()),
    "top5_scores": pa.list_(pa.float32()),
}
PART_COLUMNS = {
    "iou": pa.float64(),
    "points": pa.list_(pa.int32()),
    "parts": pa.list_(pa.uint8()),
    "true_parts": pa.list_(pa.uint8()),
}


def with_names(options: BatchOptions = BatchOptions()) -> BatchOptions:  # noqa: B008 - frozen
    """Return options whose columns hold the names of the shapes too."""
    return replace(options, beside=(*options.beside, *NAMES))


def best_classes(values: Tensor) -> Tensor:
    """Return the classes of the highest values (B, C), the lowest class first on a tie: (B, k)."""
    return values.sort(dim=-1, descending=True, stable=True).indices[:, :TOP]


@dataclass(frozen=True)
class RankedClasses:
    """The best classes of some shapes of a split.

    Attributes:
        sample_ids: (B,) int64, ascending.
        labels: (B,) true classes, negative without one.
        classes: (B, k) best classes, the predicted one first.
        scores: (B, k) float32 their scores.
    """

    sample_ids: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    def columns(self, names: Sequence[str]) -> dict[str, pa.Array]:
        """Return the rows of :data:`CLASS_COLUMNS`, by the names of the classes."""
        count, best = self.classes.shape
        chosen = pa.array(names, pa.string()).take(pa.array(self.classes.reshape(-1)))
        scores = pa.array(self.scores.reshape(-1), pa.float32())
        offsets = pa.array(np.arange(count + 1) * best, pa.int32())
        first = pa.array(np.arange(count) * best)
        return {
            "predicted": chosen.take(first),
            "score": scores.take(first),
            "top5": pa.ListArray.from_arrays(offsets, chosen),
            "top5_scores": pa.ListArray.from_arrays(offsets, scores),
        }


class PredictionFile:
    """Rows on their way to the file; only rank 0 keeps them.

    Args:
        runtime: Tables of the splits, with the columns of :func:`with_names`.
        writer: Writer of the file; None on other ranks.
    """

    def __init__(self, runtime: EvaluationRuntime, writer: pq.ParquetWriter | None) -> None:
        self._runtime = runtime
        self._writer = writer

    def add(self, split: str, sample_ids: np.ndarray, columns: Mapping[str, pa.Array]) -> None:
        """Write shapes of a split, in order of sample id."""
        if self._writer is None:
            return
        table = self._runtime.table(split)
        for start in range(0, len(sample_ids), CHUNK):
            rows = np.searchsorted(table.sample_id, sample_ids[start : start + CHUNK])
            taken = table.take(rows, {"sample_id", "label", *NAMES})
            label = taken["label"]
            named = {
                "sample_id": taken["sample_id"],
                "object_id": taken["object_id"],
                "split": [split] * len(rows),
                "label": pa.array(label, pa.int32(), mask=label < 0),
                "category": [name or None for name in taken["category"]],
            }
            part = {name: column.slice(start, CHUNK) for name, column in columns.items()}
            self._writer.write_table(pa.table({**named, **part}, schema=self._writer.schema))

    def add_classes(self, split: str, ranked: RankedClasses, names: Sequence[str]) -> None:
        """Write the classes of shapes of a split."""
        self.add(split, ranked.sample_ids, ranked.columns(names))


@contextmanager
def prediction_file(
    runtime: EvaluationRuntime, columns: Mapping[str, pa.DataType]
) -> Iterator[PredictionFile]:
    """Yield the file, which is whole and in the run's folder in the end; every rank calls this.

    Args:
        runtime: Interface of the worker.
        columns: Types of the columns besides those of the shape.

    Raises:
        CheckpointError: If it cannot be written.
    """
    if runtime.rank != 0:
        yield PredictionFile(runtime, None)
        return
    schema = pa.schema(list({**_SHAPE, **columns}.items()))
    with (
        runtime.folder.writing(PREDICTIONS) as path,
        pq.ParquetWriter(path, schema, compression="zstd") as writer,
    ):
        yield PredictionFile(runtime, writer)


def row_lists(values: np.ndarray, kept: np.ndarray) -> pa.ListArray:
    """Return the kept values of each row of (B, N) as a list."""
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values[kept]))
