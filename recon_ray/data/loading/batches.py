"""Rows of a prepared set as batches of tensors, chosen by index or mixed from a stream.

One batch is a dict: ``sample_id`` (B,) int64, ``points`` (B, N, 3) float32 as stored, ``label``
(B,) int64, ``text_index`` (B,) int64 (row of the text bank) and, where asked for, ``images``
(B, 3, H, W) float32 in [0, 1] or stored ``image_features`` and ``text_features`` (B, D) float32.
Sub-sampling and augmentation of points happen on the device; that of images may, and then
``images`` are uint8 as decoded, and ``image_parameters`` (B, P) int64 hold the random choices.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recon_ray.data.format.schema import points_to_numpy
from recon_ray.data.loading.images import ImageTransform, load_images, load_raw_images, sample_rng
from recon_ray.errors import DataError

GEOMETRY_COLUMNS = ("sample_id", "points", "label", "caption")
Batch = dict[str, Tensor]
#: Which of a sample's K stored features an epoch takes, see :func:`choose_features`.
Draw: TypeAlias = Literal["copy", "view", "row"]
T = TypeVar("T")


@dataclass(frozen=True)
class BatchOptions:
    """Content of a batch besides points and labels.

    Args:
        seed: Seed of the choice of a view and of its augmentation.
        images: Image transform, or None for batches without images.
        augment_on: Where images are augmented: ``device`` leaves them as decoded, with the random
            choices beside them; see :meth:`for_device` for ``auto``.
        text: Whether ``text_index`` is the label or the number of the caption.
        captions: Distinct captions, in the order of the text bank (``text="caption"``).
        features: Columns of stored features, and how one of a sample's is drawn.
        beside: Further geometry columns, passed on as stored (``part_labels``, ``valid_points``).
    """

    seed: int = 0
    images: ImageTransform | None = None
    augment_on: Literal["auto", "host", "device"] = "host"
    text: Literal["category", "caption"] = "category"
    captions: Sequence[str] = field(default=())
    features: Mapping[str, Draw] = field(default_factory=dict)
    beside: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Geometry columns that are read."""
        usual = GEOMETRY_COLUMNS if self.text == "caption" else GEOMETRY_COLUMNS[:3]
        return (*usual, *self.beside)

    @property
    def needs(self) -> frozenset[str]:
        """All columns that a batch needs."""
        views = ("views",) if self.images is not None else ()
        return frozenset((*self.columns, *views, *self.features))

    @cached_property
    def caption_numbers(self) -> Mapping[str, int]:
        """Caption to its number, made once for all batches of a process."""
        return {text: number for number, text in enumerate(self.captions)}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what another process makes anew."""
        return {name: value for name, value in vars(self).items() if name != "caption_numbers"}

    def for_device(self, device: torch.device) -> BatchOptions:
        """Decide where images are augmented: by default on a GPU, and on the host without one."""
        if self.augment_on != "auto":
            return self
        return replace(self, augment_on="device" if device.type == "cuda" else "host")


def make_batch(rows: Mapping[str, Any], options: BatchOptions, *, epoch: int) -> Batch:
    """Build a batch from the columns of its rows.

    Args:
        rows: ``sample_id`` (B,), ``points`` (B, N, 3) in memory of their own, ``label`` (B,), and
            where the options need them ``caption`` and ``views`` (lists), and features (B, K, D).
        options: Content of the batch.
        epoch: Epoch, which varies the choice of a view and its augmentation.
    """
    batch = {
        "sample_id": torch.from_numpy(np.array(rows["sample_id"], dtype=np.int64)),
        "points": torch.from_numpy(np.asarray(rows["points"]).astype(np.float32, copy=False)),
        "label": torch.from_numpy(np.array(rows["label"], dtype=np.int64)),
        "text_index": torch.from_numpy(text_numbers(rows, options)),
    }
    if options.images is not None:
        batch |= _load_images(rows["views"], batch["sample_id"], options.images, options, epoch)
    for name, draw in options.features.items():
        random, features = feature_random(name, options, epoch), rows[name]
        stored, ids = filled(features), rows["sample_id"]
        chosen = choose_features(stored, ids, draw, epoch=epoch, random=random)
        batch[name] = torch.from_numpy(features[np.arange(len(ids)), chosen].astype(np.float32))
    for name in options.beside:
        batch[name] = torch.from_numpy(np.array(rows[name]))
    return batch


def _load_images(
    views: Sequence[Sequence[bytes] | None],
    sample_ids: Tensor,
    transform: ImageTransform,
    options: BatchOptions,
    epoch: int,
) -> Batch:
    how: dict[str, Any] = {
        "epoch": epoch,
        "seed": options.seed,
        "transform": transform,
        "num_threads": torch.get_num_threads(),  # the worker's share of the processors
    }
    if options.augment_on != "device":
        return {"images": load_images(views, sample_ids, **how)}
    images, parameters = load_raw_images(views, sample_ids, **how)
    return {"images": images, "image_parameters": parameters}


def text_numbers(rows: Mapping[str, Any], options: BatchOptions) -> np.ndarray:
    """Return the row of the text bank of each sample: its label, or the number of its caption."""
    if options.text != "caption":
        return np.array(rows["label"], dtype=np.int64)
    number = options.caption_numbers
    return np.array([number[text] for text in rows["caption"]], dtype=np.int64)


def feature_random(
    name: str, options: BatchOptions, epoch: int
) -> Callable[[int], np.random.Generator]:
    """Return the maker of a sample's generator, from which one of its stored features is drawn."""
    return partial(sample_rng, options.seed, epoch, use=int(name == "text_features"))


def filled(features: np.ndarray) -> np.ndarray:
    """Return which of the stored features (B, K, D) are not all zeros: (B, K) bool."""
    return np.asarray((features != 0).any(axis=2))


def choose_features(
    filled: np.ndarray,
    sample_ids: Sequence[int],
    draw: Draw,
    *,
    epoch: int,
    random: Callable[[int], np.random.Generator],
) -> np.ndarray:
    """Choose one of the K stored features of each sample.

    Args:
        filled: (B, K) bool, which features are not all zeros.
        sample_ids: B numbers that name the samples over the whole data set.
        draw: ``copy`` takes number ``epoch`` mod K: copy k was augmented as in epoch k, so that
            the first K epochs are those of a teacher that runs online, and all copies are used
            equally often. ``view`` takes the view of :func:`load_images` in this epoch. ``row``
            takes a random row that is not all zeros (sources fill up with those).
        epoch: Epoch.
        random: Makes the generator of a sample in this epoch.

    Returns:
        (B,) int64.
    """
    batch, count = filled.shape
    if draw == "copy":
        return np.full(batch, epoch % count)
    allowed = np.ones_like(filled)
    if draw == "row":
        allowed = filled | ~filled.any(axis=1, keepdims=True)  # nothing but zeros: any of them
    chosen = np.empty(batch, dtype=np.int64)
    for i, sample_id in enumerate(sample_ids):
        rows = np.flatnonzero(allowed[i])
        chosen[i] = rows[random(int(sample_id)).integers(len(rows))]
    return chosen


class IndexedTable:
    """Rows of a split in memory, without copies, addressed by their position.

    Args:
        geometry: Arrow tables whose rows follow each other.
        views: Arrow tables with ``sample_id`` and ``views`` in the same order of rows, or None.
        features: Further groups of tables with ``sample_id`` and tensor columns, same order.

    Raises:
        DataError: If the groups do not hold the same samples in the same order.
    """

    def __init__(
        self,
        geometry: Sequence[pa.Table],
        views: Sequence[pa.Table] | None = None,
        features: Sequence[Sequence[pa.Table]] = (),
    ) -> None:
        beside = [] if views is None else [views]
        self._groups = [_Rows(tables) for tables in (geometry, *beside, *features)]
        self.sample_id = self._groups[0].numbers["sample_id"]
        self.label = self._groups[0].numbers["label"]
        for group in self._groups[1:]:
            if not np.array_equal(group.numbers["sample_id"], self.sample_id):
                raise DataError(
                    "views or features do not hold the same samples as the geometry, in the same "
                    "order; make them again"
                )

    def __len__(self) -> int:
        return len(self.sample_id)

    def take(
        self, rows: np.ndarray, columns: Collection[str] | None = None, *, pinned: bool = False
    ) -> dict[str, Any]:
        """Gather rows by position; only these are copied.

        Args:
            rows: (B,) positions.
            columns: Names of the columns; all by default.
            pinned: Gather tensors into memory that a GPU can copy from by itself.
        """
        taken: dict[str, Any] = {}
        for group in self._groups:
            taken |= group.take(rows, columns, pinned=pinned)
        return taken


class _Rows:
    """Tables that follow each other, by kind of column: tensors, numbers, and lists or texts."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        filled = list(_pieces(tables)) or list(tables[:1])
        self._offsets = np.cumsum([0, *(len(table) for table in filled)])
        self._tensors: dict[str, list[Tensor]] = {}
        self.numbers: dict[str, np.ndarray] = {}
        self._others: dict[str, pa.ChunkedArray] = {}
        for name, kind in zip(filled[0].schema.names, filled[0].schema.types, strict=True):
            if _is_tensor(kind):
                self._tensors[name] = [_as_tensor(points_to_numpy(t[name])) for t in filled]
                continue
            column = pa.chunked_array([chunk for table in filled for chunk in table[name].chunks])
            if pa.types.is_integer(kind):
                self.numbers[name] = column.to_numpy().astype(np.int64)
            else:
                self._others[name] = column

    def take(
        self, rows: np.ndarray, columns: Collection[str] | None, *, pinned: bool
    ) -> dict[str, Any]:
        def chosen(kind: Mapping[str, T]) -> list[tuple[str, T]]:
            return [item for item in kind.items() if columns is None or item[0] in columns]

        taken: dict[str, Any] = {name: column[rows] for name, column in chosen(self.numbers)}
        taken |= {
            name: _gather(blocks, self._offsets, rows, pinned)
            for name, blocks in chosen(self._tensors)
        }
        where = pa.array(rows)
        return taken | {name: col.take(where).to_pylist() for name, col in chosen(self._others)}


def _gather(
    blocks: Sequence[Tensor], offsets: np.ndarray, rows: np.ndarray, pinned: bool
) -> np.ndarray:
    """Copy rows of blocks that follow each other, with all threads of torch."""
    shape = (len(rows), *blocks[0].shape[1:])
    # Pinned memory is kept by torch for the next batch; fresh memory costs a fault a page.
    gathered = torch.empty(shape, dtype=blocks[0].dtype, pin_memory=pinned)
    block = np.searchsorted(offsets, rows, side="right") - 1
    local = torch.from_numpy(rows - offsets[block])
    edges = np.flatnonzero(np.diff(block, prepend=-1, append=-1)).tolist()
    used = np.unique(block).tolist()
    if len(edges) - 1 <= 2 * len(used):  # rows of a block lie together, in the batch too
        for start, stop in itertools.pairwise(edges):
            torch.index_select(blocks[block[start]], 0, local[start:stop], out=gathered[start:stop])
        return gathered.numpy()
    for number in used:
        chosen = torch.from_numpy(np.flatnonzero(block == number))
        gathered[chosen] = blocks[number].index_select(0, local[chosen])
    return gathered.numpy()


def _as_tensor(values: np.ndarray) -> Tensor:
    """Return a tensor of an array's memory, which is Arrow's and must not be written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not writable
        return torch.from_numpy(values)


def _pieces(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Cut tables where their chunks end, so that no column has to be copied to be one array."""
    for table in tables:
        yield from (pa.Table.from_batches([rows]) for rows in table.to_batches() if len(rows))


def _is_tensor(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.FixedShapeTensorType)


class RowWindow:
    """Rows of a stream that are in memory from their arrival to their use, by number of arrival.

    Args:
        pinned: Put the tensors of a batch into memory that a GPU can copy from by itself.

    Attributes:
        arrived: Rows that have arrived.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self.arrived = 0
        self._pinned = pinned
        self._pieces: list[_Piece] = []

    def add(self, table: pa.Table) -> None:
        """Take the next rows of the stream."""
        for piece in _pieces([table]):
            self._pieces.append(_Piece(self.arrived, len(piece), _columns(piece)))
            self.arrived += len(piece)

    def take(self, numbers: np.ndarray) -> dict[str, Any]:
        """Return rows, which are not held any longer.

        Args:
            numbers: (B,) numbers of rows that have arrived and were not taken.
        """
        pieces = self._pieces
        starts = np.array([piece.start for piece in pieces])
        piece = np.searchsorted(starts, numbers, side="right") - 1
        offsets = np.cumsum([0, *(one.rows for one in pieces)])
        rows = numbers - starts[piece] + offsets[piece]
        taken = {
            name: _taken([one.columns[name] for one in pieces], offsets, rows, self._pinned)
            for name in pieces[0].columns
        }
        for index, count in zip(*np.unique(piece, return_counts=True), strict=True):
            pieces[index].left -= int(count)
        self._pieces = [one for one in pieces if one.left]
        return taken


class _Piece:
    """Rows of a window that arrived together.

    Args:
        start: Number of the first one.
        rows: Number of rows.
        columns: Tensors, arrays of integers, and Arrow arrays of the rest.

    Attributes:
        left: Rows that were not taken yet.
    """

    def __init__(self, start: int, rows: int, columns: Mapping[str, Any]) -> None:
        self.start, self.rows, self.columns = start, rows, columns
        self.left = rows


def _columns(table: pa.Table) -> dict[str, Any]:
    def values(column: pa.ChunkedArray) -> Any:  # noqa: ANN401 - as the column is
        if _is_tensor(column.type):
            return _as_tensor(points_to_numpy(column))
        is_integer = pa.types.is_integer(column.type)
        return column.to_numpy().astype(np.int64) if is_integer else column.chunk(0)

    return {name: values(table[name]) for name in table.column_names}


def _taken(
    blocks: Sequence[Any], offsets: np.ndarray, rows: np.ndarray, pinned: bool
) -> np.ndarray | list[Any]:
    """Copy rows of a column whose blocks follow each other."""
    if isinstance(blocks[0], Tensor):
        return _gather(blocks, offsets, rows, pinned)
    if isinstance(blocks[0], np.ndarray):
        return np.concatenate(blocks)[rows]
    return pa.chunked_array(blocks).take(pa.array(rows)).to_pylist()
