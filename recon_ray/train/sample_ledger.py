"""Which sample was used how often in which epoch, by the steps that the model has really done.

Counts travel in the checkpoint, so that steps which were lost with a worker are lost here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor

from recon_ray.errors import CheckpointError
from recon_ray.runs.folder import RunFolder
from recon_ray.train.metrics import is_distributed

FILE = "ledger.parquet"


class SampleLedger:
    """Counts the uses of every sample; each worker its own until they are merged.

    Args:
        epochs: Counts of earlier steps: epoch to (S,) uint8 over sample ids.
    """

    def __init__(self, epochs: Mapping[int, Tensor] | None = None) -> None:
        #: What is merged: epoch to (S,) uint8 over sample ids, the same on every rank.
        self.merged = {int(epoch): counts.clone() for epoch, counts in (epochs or {}).items()}
        self._own: dict[int, Tensor] = {}

    def mark(self, epoch: int, sample_ids: Tensor) -> None:
        """Count the samples of one worker's batch."""
        ids = sample_ids.cpu()
        counts = _padded(self._own.get(epoch), int(ids.max()) + 1)
        counts += torch.bincount(ids, minlength=len(counts)).to(torch.uint8)
        self._own[epoch] = counts

    def merge(self, device: torch.device) -> None:
        """Add up what the workers have counted; every rank takes part.

        Args:
            device: Where the workers exchange tensors.
        """
        for epoch, own in sorted(self._own.items()):
            total = _sum(own, device)
            before = _padded(self.merged.get(epoch), len(total))
            self.merged[epoch] = before + _padded(total, len(before))
        self._own = {}


def _padded(counts: Tensor | None, length: int) -> Tensor:
    padded = torch.zeros(max(length, 0 if counts is None else len(counts)), dtype=torch.uint8)
    if counts is not None:
        padded[: len(counts)] = counts
    return padded


def _sum(counts: Tensor, device: torch.device) -> Tensor:
    if not is_distributed():
        return counts
    length = torch.tensor([len(counts)], device=device)
    dist.all_reduce(length, op=dist.ReduceOp.MAX)
    padded = _padded(counts, int(length)).to(device)
    dist.all_reduce(padded, op=dist.ReduceOp.SUM)
    return padded.cpu()


def ledger_table(epochs: Mapping[int, Tensor]) -> pa.Table:
    """The counts as rows ``epoch``, ``sample_id``, ``uses``, of the samples that were used."""
    return pa.Table.from_batches(
        list(_batches(epochs)),
        pa.schema(
            [("epoch", pa.int32()), ("sample_id", pa.int64()), ("uses", pa.uint8())],
        ),
    )


def write_ledger(folder: RunFolder, epochs: Mapping[int, Tensor]) -> None:
    """Write ``ledger.parquet`` into a run's folder.

    Raises:
        CheckpointError: If the storage refuses.
    """
    path = folder.local / FILE
    try:
        pq.write_table(ledger_table(epochs), path)
    except OSError as error:
        raise CheckpointError(f"{path}: the ledger could not be written ({error})") from error


def _batches(epochs: Mapping[int, Tensor]) -> Iterator[pa.RecordBatch]:
    for epoch, counts in sorted(epochs.items()):
        ids = torch.nonzero(counts).flatten()
        yield pa.RecordBatch.from_arrays(
            [
                pa.array([epoch] * len(ids), pa.int32()),
                pa.array(ids.numpy(), pa.int64()),
                pa.array(counts[ids].numpy(), pa.uint8()),
            ],
            names=["epoch", "sample_id", "uses"],
        )
