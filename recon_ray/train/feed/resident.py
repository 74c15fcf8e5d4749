"""Training rows that stay on the device: a batch holds row numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from recon_ray.data.loading.batches import (
    Batch,
    BatchOptions,
    IndexedTable,
    choose_features,
    feature_random,
    filled,
    text_numbers,
)
from recon_ray.errors import ConfigError
from recon_ray.train.feed.batching import BatchPlan, rank_shares
from recon_ray.train.feed.indexed import GlobalOrder, IndexedFeed, TrainFeed

logger = logging.getLogger(__name__)

Residency: TypeAlias = Literal["auto", "host", "device"]

#: Part of the free GPU memory that training rows may take where that is not asked for.
DEVICE_FRACTION = 0.25
#: Rows that are brought to the device at once.
ROWS_AT_ONCE = 4096


def indexed_feed(
    table: IndexedTable,
    options: BatchOptions,
    *,
    seed: int,
    residency: Residency,
    device: torch.device,
) -> TrainFeed:
    """Return batches of rows in memory, from the device where the rows are to lie there.

    Samples and their order are the same either way.

    Args:
        table: The training rows.
        options: What a batch holds.
        seed: Seed of the order.
        residency: ``auto`` keeps them on a GPU that has room for them.
        device: The worker's device.

    Raises:
        ConfigError: If rows are to lie on the device that cannot.
    """
    options = options.for_device(device)
    if options.images is not None:
        if residency == "device":
            raise ConfigError(
                "data.residency=device: pictures are decoded anew in every epoch and cannot stay "
                "on the device; set teacher.image.mode=cached, or data.residency=auto"
            )
        return IndexedFeed(table, options, seed=seed, pinned=device.type == "cuda")
    size = _row_bytes(table, options) * len(table)
    room = _room(device)
    if residency == "device" and size > room:
        raise ConfigError(
            f"data.residency=device: the training rows take {size / 2**30:.1f} GiB, {device} has "
            f"{room / 2**30:.1f} GiB free; set data.residency=auto"
        )
    fits = device.type == "cuda" and size <= DEVICE_FRACTION * room
    if residency == "device" or (residency == "auto" and fits):
        logger.info("the training rows lie on %s (%.2f GiB)", device, size / 2**30)
        return ResidentFeed(table, options, seed=seed, device=device)
    return IndexedFeed(table, options, seed=seed, pinned=device.type == "cuda")


class ResidentFeed(GlobalOrder):
    """All rows on the device, in the stored precision; a batch holds row numbers.

    The order is that of :class:`~recon_ray.train.feed.indexed.IndexedFeed`: every worker holds all
    rows and takes its share of each global batch, so that the shuffling is exact in every epoch.

    Args:
        table: The training rows.
        options: What a batch holds; no images.
        seed: Seed of the order.
        device: Where the rows are brought.
    """

    def __init__(
        self, table: IndexedTable, options: BatchOptions, *, seed: int, device: torch.device
    ) -> None:
        self.rows = len(table)
        self._options = options
        self._seed = seed
        self._sample_id = table.sample_id
        self._filled: dict[str, np.ndarray] = {}
        self._columns: Batch = {}
        self._read(table, device)

    def _read(self, table: IndexedTable, device: torch.device) -> None:
        options = self._options
        parts: dict[str, list[Tensor]] = {}
        filled_parts: dict[str, list[np.ndarray]] = {name: [] for name in options.features}
        for start in range(0, self.rows, ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, self.rows))
            taken = table.take(rows, options.needs)
            columns = {name: taken[name] for name in ("points", *options.features, *options.beside)}
            columns["label"] = np.array(taken["label"], dtype=np.int64)
            columns["text_index"] = text_numbers(taken, options)
            for name in options.features:
                filled_parts[name].append(filled(taken[name]))
            for name, values in columns.items():
                moved = torch.from_numpy(np.array(values)).to(device)
                parts.setdefault(name, []).append(moved)
        for name in list(parts):
            self._columns[name] = torch.cat(parts.pop(name))
        self._filled = {name: np.concatenate(values) for name, values in filled_parts.items()}

    def epoch(self, epoch: int, start_step: int, plan: BatchPlan, rank: int) -> Iterator[Batch]:
        """Return the row numbers of the worker's share of every global batch."""
        options = self._options
        place = {"seed": self._seed, "epoch": epoch, "start_step": start_step, "rank": rank}
        for rows in rank_shares(self.rows, plan=plan, **place):
            ids = self._sample_id[rows]
            batch = {"row": torch.from_numpy(rows), "sample_id": torch.from_numpy(ids)}
            for name, draw in options.features.items():
                there, random = self._filled[name][rows], feature_random(name, options, epoch)
                chosen = choose_features(there, ids, draw, epoch=epoch, random=random)
                batch[name] = torch.from_numpy(chosen)
            yield batch

    def gather_on_device(self, batch: Batch) -> Batch:
        """Gather the rows on the device."""
        row = batch["row"]
        whole = {"sample_id": batch["sample_id"]}
        for name, column in self._columns.items():
            if name in self._options.features:
                whole[name] = column[row, batch[name]].float()
            else:
                whole[name] = column[row].float() if name == "points" else column[row]
        return whole


def _row_bytes(table: IndexedTable, options: BatchOptions) -> int:
    names = {"points", *options.features, *options.beside}
    row = table.take(np.zeros(1, dtype=np.int64), names)
    return sum(np.asarray(row[name]).nbytes for name in names)


def _room(device: torch.device) -> int:
    """Free bytes of a GPU; of another device, more than any set takes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1 << 62
