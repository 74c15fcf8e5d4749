"""Rows of a prepared set as batches of tensors, chosen by index or mixed from a stream.

One batch is a dict: ``sample_id`` (B,) int64, ``points`` (B, N, 3) float32 as stored, ``label``
(B,) int64, ``text_index`` (B,) int64 (row of the text bank) and, where asked for, ``images``
(B, 3, H, W) float32 in [0, 1]. Sub-sampling and augmentation of points happen on the device.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recon_ray.data.images import ImageTransform, load_images
from recon_ray.data.schema import points_to_numpy

GEOMETRY_COLUMNS = ("sample_id", "points", "label", "caption")
Batch = dict[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True)
class BatchOptions:
    """What a batch holds besides points and labels.

    Args:
        seed: Seed of the choice of a view and of its augmentation.
        images: Image transform, or None for batches without images.
        text: Whether ``text_index`` is the label or the number of the caption.
        captions: Distinct captions, in the order of the text bank (``text="caption"``).
    """

    seed: int = 0
    images: ImageTransform | None = None
    text: Literal["category", "caption"] = "category"
    captions: Sequence[str] = field(default=())

    @property
    def columns(self) -> tuple[str, ...]:
        """Geometry columns that are read."""
        return GEOMETRY_COLUMNS if self.text == "caption" else GEOMETRY_COLUMNS[:3]


def make_batch(rows: Mapping[str, Any], options: BatchOptions, *, epoch: int) -> Batch:
    """Build a batch from the columns of its rows.

    Args:
        rows: ``sample_id`` (B,), ``points`` (B, N, 3), ``label`` (B,), and ``caption`` and
            ``views`` (lists) where the options need them.
        options: What the batch holds.
        epoch: Epoch, which varies the choice of a view and its augmentation.
    """
    batch = {
        "sample_id": torch.from_numpy(np.array(rows["sample_id"], dtype=np.int64)),
        "points": torch.from_numpy(np.asarray(rows["points"]).astype(np.float32)),
        "label": torch.from_numpy(np.array(rows["label"], dtype=np.int64)),
    }
    if options.text == "caption":
        number = {text: i for i, text in enumerate(options.captions)}
        batch["text_index"] = torch.tensor([number[text] for text in rows["caption"]])
    else:
        batch["text_index"] = batch["label"]
    if options.images is not None:
        batch["images"] = load_images(
            rows["views"],
            batch["sample_id"],
            epoch=epoch,
            seed=options.seed,
            transform=options.images,
        )
    return batch


class IndexedTable:
    """Rows of a split in memory, without copies, addressed by their position.

    Args:
        geometry: Arrow tables whose rows follow each other.
        views: Arrow tables with ``sample_id`` and ``views`` in the same order of rows, or None.
    """

    def __init__(
        self, geometry: Sequence[pa.Table], views: Sequence[pa.Table] | None = None
    ) -> None:
        self._points = [points_to_numpy(table["points"]) for table in geometry if len(table)]
        self._offsets = np.cumsum([0, *(len(block) for block in self._points)])
        scalars = pa.concat_tables(
            [table.drop_columns(["points"]) for table in geometry if len(table)],
            promote_options="permissive",
        )
        self.sample_id = scalars["sample_id"].to_numpy().astype(np.int64)
        self.label = scalars["label"].to_numpy().astype(np.int64)
        self._caption = scalars["caption"] if "caption" in scalars.column_names else None
        self._views = (
            None
            if views is None
            else pa.chunked_array([chunk for table in views for chunk in table["views"].chunks])
        )

    def __len__(self) -> int:
        return len(self.sample_id)

    def take(self, rows: np.ndarray) -> dict[str, Any]:
        """Gather rows by position; only these are copied.

        Args:
            rows: (B,) positions.
        """
        block = np.searchsorted(self._offsets, rows, side="right") - 1
        points = np.empty((len(rows), *self._points[0].shape[1:]), dtype=self._points[0].dtype)
        for number in np.unique(block):
            chosen = block == number
            points[chosen] = self._points[number][rows[chosen] - self._offsets[number]]
        taken: dict[str, Any] = {
            "sample_id": self.sample_id[rows],
            "points": points,
            "label": self.label[rows],
        }
        if self._caption is not None:
            taken["caption"] = self._caption.take(pa.array(rows)).to_pylist()
        if self._views is not None:
            taken["views"] = self._views.take(pa.array(rows)).to_pylist()
        return taken


class ShuffleBuffer:
    """Mixes a stream of tables and gives batches of one fixed size.

    A batch is drawn at random from the rows in memory, so that every worker that is given equally
    many rows gives equally many batches, whatever the sizes of the tables.

    Args:
        batch_size: Rows of every batch; a last incomplete one is dropped.
        capacity: Rows that are held before the first one leaves.
        seed: Seed of the draws.
    """

    def __init__(self, batch_size: int, *, capacity: int, seed: Sequence[int]) -> None:
        self.batch_size = batch_size
        self.capacity = max(capacity, batch_size)
        self._random = np.random.default_rng(list(seed))

    def mix(self, tables: Iterable[pa.Table]) -> Iterator[dict[str, Any]]:
        """Give the rows of the tables in batches, each row once."""
        blocks: dict[int, tuple[dict[str, Any], int]] = {}
        refs: list[tuple[int, int]] = []
        for number, table in enumerate(tables):
            blocks[number] = (_columns(table), len(table))
            refs.extend((number, row) for row in range(len(table)))
            while len(refs) >= self.capacity + self.batch_size:
                yield self._draw(blocks, refs)
        while len(refs) >= self.batch_size:
            yield self._draw(blocks, refs)

    def _draw(
        self, blocks: dict[int, tuple[dict[str, Any], int]], refs: list[tuple[int, int]]
    ) -> dict[str, Any]:
        picked = []
        for _ in range(self.batch_size):
            at = int(self._random.integers(len(refs)))
            refs[at], refs[-1] = refs[-1], refs[at]
            picked.append(refs.pop())
        names = blocks[picked[0][0]][0].keys()
        rows: dict[str, Any] = {
            name: [blocks[block][0][name][row] for block, row in picked] for name in names
        }
        for block, _ in picked:
            columns, left = blocks[block]
            blocks[block] = (columns, left - 1)
            if left == 1:
                del blocks[block]
        for name in ("sample_id", "points", "label"):
            rows[name] = np.stack(rows[name])
        return rows


def _columns(table: pa.Table) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "sample_id": table["sample_id"].to_numpy(),
        "points": points_to_numpy(table["points"]),
        "label": table["label"].to_numpy(),
    }
    for name in ("caption", "views"):
        if name in table.column_names:
            columns[name] = table[name].to_pylist()
    return columns


def prefetch(items: Callable[[], Iterator[T]], *, depth: int = 2) -> Iterator[T]:
    """Run an iterator in a thread that stays up to ``depth`` items ahead.

    Args:
        items: Makes the iterator, inside the thread.
        depth: Items held ready.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> bool:  # noqa: ANN401 - an item or an exception
        while not stopped.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in items():
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=produce, daemon=True, name="batch-prefetch")
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()
        thread.join()
