"""Metrics that count every sample once over all workers, and do not stop the device.

Values are summed on the device and read once a logging interval.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Return whether several workers share a process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class Reading:
    """Sums on their way from the device to the host.

    Args:
        names: Names of the values.
        sums: (names + 1,) sums and, last, the number of samples.
    """

    def __init__(self, names: Sequence[str], sums: Tensor) -> None:
        self._names = list(names)
        on_gpu = sums.device.type == "cuda"
        self._host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=on_gpu)
        self._host.copy_(sums, non_blocking=True)
        self._event = torch.cuda.Event() if on_gpu else None
        if self._event is not None:
            self._event.record()

    def means(self) -> dict[str, float]:
        """Wait for the sums and return the means."""
        if self._event is not None:
            self._event.synchronize()
        *sums, weight = self._host.tolist()
        return {name: value / weight for name, value in zip(self._names, sums, strict=True)}


class Mean:
    """Sample-weighted means of named values over an interval and over all workers."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: Tensor | None = None

    def update(self, values: Mapping[str, Tensor], *, weight: int) -> None:
        """Add the means of ``weight`` samples; nothing leaves the device.

        A captured call adds again at every replay.

        Args:
            values: Name to () tensor; the names are the same at every call.
            weight: Samples behind them.
        """
        rows = [value.detach().double() for value in values.values()]
        added = torch.stack([*rows, torch.ones_like(rows[0])]) * weight
        if self._sums is None or self._names != list(values):
            self._names, self._sums = list(values), torch.zeros_like(added)
        self._sums.add_(added)

    def read(self, *, begin_again: bool = True) -> Reading:
        """Start to read the means over all workers, and begin again at 0.

        Every worker calls it equally often.
        """
        sums = self._totals()
        if begin_again and self._sums is not None:
            self._sums.zero_()
        return Reading(self._names, sums)

    def stored(self) -> dict[str, float]:
        """Return the sums over all workers, and the samples behind them; every worker calls it."""
        if self._sums is None:
            return {}
        return dict(zip([*self._names, ""], self._totals().tolist(), strict=True))

    def restore(self, stored: Mapping[str, float], device: torch.device, *, rank: int) -> None:
        """Go on from sums of :meth:`stored`, which one worker takes over for all."""
        *self._names, _ = stored
        sums = torch.tensor([*stored.values()], dtype=torch.float64, device=device)
        self._sums = sums if rank == 0 else torch.zeros_like(sums)

    def _totals(self) -> Tensor:
        if self._sums is None:
            raise RuntimeError("there is nothing to read before the first update")
        sums = self._sums.clone()
        if is_distributed():
            dist.all_reduce(sums)
        return sums


def gather_rows(values: Tensor) -> Tensor:
    """Concatenate the workers' rows, which may differ in number, in order of rank.

    Args:
        values: (B, ...) rows of this worker.

    Returns:
        (sum of B, ...) on every worker, on the CPU.
    """
    if not is_distributed():
        return values.cpu()
    count = torch.tensor([len(values)], device=values.device)
    counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    sizes = [int(c) for c in counts]
    padded = values.new_zeros((max(sizes), *values.shape[1:]))
    padded[: len(values)] = values
    parts = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size].cpu() for part, size in zip(parts, sizes, strict=True)])


def reduce_padded(values: Tensor, device: torch.device, op: dist.ReduceOp.RedOpType) -> Tensor:
    """Reduce vectors of the workers, which may differ in length; shorter ones count as zeros.

    Args:
        values: (N,) vector of this worker, on the CPU.
        device: Device on which the workers exchange tensors.
        op: Reduction.

    Returns:
        (largest N,) on every worker, on the CPU.
    """
    if not is_distributed():
        return values
    length = torch.tensor([len(values)], device=device)
    dist.all_reduce(length, op=dist.ReduceOp.MAX)
    padded = values.new_zeros(int(length), device=device)
    padded[: len(values)] = values.to(device)
    dist.all_reduce(padded, op=op)
    return padded.cpu()


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory of this worker so far: on the GPU, or of the process without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
