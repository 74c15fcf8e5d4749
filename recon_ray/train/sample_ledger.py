"""Ledger of samples: uses of every sample in every epoch, by the steps that the model has taken.

The counts are part of the checkpoint, so that lost steps are lost here too. A batch costs its own
samples; at a commit rank 0 takes over what the workers have used since the one before. An epoch is
kept as one bit a sample, or as runs of neighboring samples where that is smaller: a few hundred
bytes for one that has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor

from recon_ray.errors import CheckpointError
from recon_ray.runs.folder import RunFolder
from recon_ray.train.metrics import is_distributed

FILE = "ledger.parquet"
#: One epoch: ``bits`` (bytes,) uint8 or ``runs`` (R, 2) int64, first sample and the one behind the
#: last, and ``more`` (2, M) int64, samples that were used again and how often.
StoredEpoch: TypeAlias = dict[str, Tensor]

#: Epoch and sample in one number: epoch * EPOCH + sample.
EPOCH = 1 << 40
#: Samples that rank 0 takes over at once, and rows that are written at once.
AT_ONCE = 1 << 22
#: Bytes of a run in the stored form.
RUN_BYTES = 16

SCHEMA = pa.schema([("epoch", pa.int32()), ("sample_id", pa.int64()), ("uses", pa.int32())])


class SampleLedger:
    """Counts the uses of every sample; each worker its own until they are merged on rank 0.

    Args:
        epochs: Counts of earlier steps, from a checkpoint: epoch to its stored form, or of an older
            version (S,) integers over sample ids.
    """

    def __init__(self, epochs: Mapping[int, StoredEpoch | Tensor] | None = None) -> None:
        self._ended = {int(epoch): _stored(counts) for epoch, counts in (epochs or {}).items()}
        self._open: dict[int, _Uses] = {}
        self._own: list[np.ndarray] = []

    def mark(self, epoch: int, sample_ids: Tensor) -> None:
        """Count the samples of one worker's batch."""
        self._own.append(sample_ids.cpu().numpy().astype(np.int64) + epoch * EPOCH)

    def merge(self, device: torch.device) -> None:
        """Bring what the workers have used since the last time to rank 0; every rank takes part.

        Args:
            device: Device on which the workers exchange tensors.
        """
        own, self._own = np.concatenate([*self._own, np.empty(0, np.int64)]), []
        for keys in _on_rank_zero(own, device):
            self._add(keys)

    @property
    def merged(self) -> dict[int, StoredEpoch]:
        """Return the merged counts in their stored form, on rank 0."""
        found = self._ended | {epoch: uses.stored() for epoch, uses in self._open.items()}
        return dict(sorted(found.items()))

    def _add(self, keys: np.ndarray) -> None:
        keys, counts = np.unique(keys, return_counts=True)
        epochs, starts = np.unique(keys // EPOCH, return_index=True)
        for epoch, start, end in zip(
            epochs.tolist(), starts, [*starts[1:], len(keys)], strict=True
        ):
            if epoch not in self._open:
                self._open[epoch] = _Uses(self._ended.pop(epoch, {}))
            self._open[epoch].add(keys[start:end] % EPOCH, counts[start:end])
        for epoch in sorted(self._open)[:-1]:
            self._ended[epoch] = self._open.pop(epoch).stored()


def _on_rank_zero(keys: np.ndarray, device: torch.device) -> Iterator[np.ndarray]:
    """Return the keys of all workers in parts, on rank 0; every rank takes part."""
    if not is_distributed():
        yield keys
        return
    count = torch.tensor([len(keys)], device=device)
    dist.all_reduce(count, op=dist.ReduceOp.MAX)
    world, is_zero = dist.get_world_size(), dist.get_rank() == 0
    size = max(1, AT_ONCE // world)
    for start in range(0, int(count), size):
        own = torch.from_numpy(keys[start : start + size])
        part = torch.full((size,), -1, dtype=torch.int64, device=device)
        part[: len(own)] = own.to(device)
        parts = [torch.empty_like(part) for _ in range(world)] if is_zero else None
        dist.gather(part, parts, dst=0)
        if parts is not None:
            found = torch.cat(parts)
            yield found[found >= 0].cpu().numpy()


class _Uses:
    """Uses of the samples in one epoch: a bit for each that was used, and counts of further uses.

    Args:
        stored: The stored form.
    """

    def __init__(self, stored: StoredEpoch) -> None:
        if "runs" in stored:
            self._bits = _bits_of(stored["runs"].numpy())
        else:
            self._bits = stored.get("bits", torch.empty(0, dtype=torch.uint8)).numpy().copy()
        self._end = len(self._bits)
        more = stored.get("more")
        self._more = np.empty((2, 0), np.int64) if more is None else more.numpy()

    def add(self, ids: np.ndarray, counts: np.ndarray) -> None:
        """Count samples (n,), in ascending order and each once, ``counts`` (n,) times."""
        self._end = max(self._end, int(ids[-1]) // 8 + 1)
        if self._end > len(self._bits):
            grown = np.zeros(2 * self._end, np.uint8)
            grown[: len(self._bits)] = self._bits
            self._bits = grown
        byte, bit = ids // 8, np.left_shift(1, ids % 8).astype(np.uint8)
        more = counts - 1 + ((self._bits[byte] & bit) != 0)
        places = np.flatnonzero(np.diff(byte, prepend=-1))
        self._bits[byte[places]] |= np.bitwise_or.reduceat(bit, places)
        if more.any():
            again = np.stack([ids, more])[:, more > 0]
            samples, where = np.unique(
                np.concatenate([self._more[0], again[0]]), return_inverse=True
            )
            uses = np.bincount(where, np.concatenate([self._more[1], again[1]])).astype(np.int64)
            self._more = np.stack([samples, uses])

    def stored(self) -> StoredEpoch:
        """Return the smaller one of the two forms."""
        bits = self._bits[: self._end]
        words = np.zeros(len(bits) // 8 + 1, "<u8")  # with a zero behind the last bit
        words.view(np.uint8)[: len(bits)] = bits
        edges = words ^ (words << np.uint64(1))
        edges[1:] ^= words[:-1] >> np.uint64(63)
        if RUN_BYTES * int(np.bitwise_count(edges).sum()) // 2 < len(bits):
            found = {"runs": torch.from_numpy(_set_bits(edges).reshape(-1, 2))}
        else:
            found = {"bits": torch.from_numpy(bits.copy())}
        return found | ({"more": torch.from_numpy(self._more)} if self._more.size else {})

    def rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Return the samples that were used (n,) and their uses (n,), in parts."""
        for start in range(0, self._end, AT_ONCE // 8):
            part = self._bits[start : min(start + AT_ONCE // 8, self._end)]
            ids = np.flatnonzero(np.unpackbits(part, bitorder="little")) + 8 * start
            uses = np.ones(len(ids), np.int64)
            here = np.isin(self._more[0], ids, assume_unique=True)
            uses[np.searchsorted(ids, self._more[0][here])] += self._more[1][here]
            yield ids, uses


def _set_bits(words: np.ndarray) -> np.ndarray:
    """Return the numbers of the bits that are set in (n,) words of 64 bits."""
    filled = np.flatnonzero(words)
    bits = np.unpackbits(words[filled].view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    word, bit = np.nonzero(bits)
    return (filled[word] * 64 + bit).astype(np.int64)


def _bits_of(runs: np.ndarray) -> np.ndarray:
    """Return (bytes,) whose bits are set within the runs (R, 2)."""
    first, end = runs[:, 0], runs[:, 1]
    size = int(end[-1]) // 8 + 1 if len(runs) else 0
    changes = np.zeros(size + 1, np.int8)
    # Whole bytes are set from the one behind that of the first sample on.
    np.add.at(changes, first // 8 + 1, 1)
    np.add.at(changes, np.maximum(end // 8, first // 8 + 1), -1)
    bits = (np.cumsum(changes[:size], dtype=np.int8) * -1).astype(np.uint8)
    from_first, before_end = 0xFF << (first % 8), (1 << (end % 8)) - 1
    is_one_byte = first // 8 == end // 8
    head = np.where(is_one_byte, from_first & before_end, from_first & 0xFF).astype(np.uint8)
    np.bitwise_or.at(bits, first // 8, head)
    tail = ~is_one_byte
    np.bitwise_or.at(bits, end[tail] // 8, before_end[tail].astype(np.uint8))
    return bits


def _stored(epoch: StoredEpoch | Tensor) -> StoredEpoch:
    """Return the stored form of an epoch, which older versions stored as (S,) counts."""
    if not isinstance(epoch, Tensor):
        return dict(epoch)
    ids = torch.nonzero(epoch).flatten().numpy()
    uses = _Uses({})
    if len(ids):
        uses.add(ids, epoch.numpy()[ids].astype(np.int64))
    return uses.stored()


def _parts(epochs: Mapping[int, StoredEpoch]) -> Iterator[pa.Table]:
    for epoch, stored in sorted(epochs.items()):
        for ids, uses in _Uses(stored).rows():
            columns = [np.full(len(ids), epoch, np.int32), ids, uses.astype(np.int32)]
            yield pa.table(columns, schema=SCHEMA)


def ledger_table(epochs: Mapping[int, StoredEpoch]) -> pa.Table:
    """Return rows ``epoch``, ``sample_id``, ``uses`` of the samples that were used."""
    return pa.concat_tables([SCHEMA.empty_table(), *_parts(epochs)])


def write_ledger(folder: RunFolder, epochs: Mapping[int, StoredEpoch]) -> None:
    """Write ``ledger.parquet`` into a run's folder, epoch after epoch.

    Raises:
        CheckpointError: If the storage refuses.
    """
    path = folder.local / FILE
    try:
        with pq.ParquetWriter(path, SCHEMA) as writer:
            for part in _parts(epochs):
                writer.write_table(part)
    except OSError as error:
        raise CheckpointError(f"{path}: the ledger could not be written ({error})") from error
