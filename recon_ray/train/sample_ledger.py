"""Ledger of samples: uses of every sample in every epoch, by the steps that the model has taken.

The counts are part of the checkpoint, so that lost steps are lost here too.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor

from recon_ray.errors import CheckpointError
from recon_ray.runs.folder import RunFolder
from recon_ray.train.metrics import reduce_padded

FILE = "ledger.parquet"


class SampleLedger:
    """Counts the uses of every sample; each worker its own until they are merged.

    Args:
        epochs: Counts of earlier steps: epoch to (S,) integers over sample ids.
    """

    def __init__(self, epochs: Mapping[int, Tensor] | None = None) -> None:
        #: Merged counts: epoch to (S,) over sample ids, the same on every rank; uint8 where they
        #: fit, since there is one for every sample and epoch.
        self.merged = {int(epoch): counts.clone() for epoch, counts in (epochs or {}).items()}
        self._own: dict[int, Tensor] = {}

    def mark(self, epoch: int, sample_ids: Tensor) -> None:
        """Count the samples of one worker's batch."""
        ids = sample_ids.cpu()
        counts = _padded(self._own.get(epoch), int(ids.max()) + 1)
        counts += torch.bincount(ids, minlength=len(counts)).to(torch.int32)
        self._own[epoch] = counts

    def merge(self, device: torch.device) -> None:
        """Add up the counts of the workers, which exchange tensors on ``device``, on every rank."""
        for epoch, own in sorted(self._own.items()):
            total = reduce_padded(own, device, dist.ReduceOp.SUM)
            before = _padded(self.merged.get(epoch), len(total))
            counts = before + _padded(total, len(before))
            fits = int(counts.max()) <= torch.iinfo(torch.uint8).max
            self.merged[epoch] = counts.to(torch.uint8) if fits else counts
        self._own = {}


def _padded(counts: Tensor | None, length: int) -> Tensor:
    padded = torch.zeros(max(length, 0 if counts is None else len(counts)), dtype=torch.int32)
    if counts is not None:
        padded[: len(counts)] = counts
    return padded


def ledger_table(epochs: Mapping[int, Tensor]) -> pa.Table:
    """Return rows ``epoch``, ``sample_id``, ``uses`` of the samples that were used."""
    schema = pa.schema([("epoch", pa.int32()), ("sample_id", pa.int64()), ("uses", pa.int32())])
    parts = []
    for epoch, counts in sorted(epochs.items()):
        ids = torch.nonzero(counts).flatten()
        columns = [[epoch] * len(ids), ids.numpy(), counts[ids].numpy()]
        parts.append(pa.table(columns, schema=schema))
    return pa.concat_tables(parts) if parts else schema.empty_table()


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
