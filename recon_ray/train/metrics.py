"""Metrics that count every sample once over all workers, and do not stop the device.

Values are summed on the device and read once a logging interval.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether several workers share a process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class Mean:
    """Sample-weighted means of named values over an interval and over all workers."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weight = 0.0

    def update(self, values: Mapping[str, Tensor], *, weight: int) -> None:
        """Add the means of ``weight`` samples; tensors stay where they are.

        Args:
            values: Name to () tensor.
            weight: Samples behind them.
        """
        for name, value in values.items():
            term = value.detach().float() * weight
            self._sums[name] = self._sums[name] + term if name in self._sums else term
        self._weight += weight

    def compute(self) -> dict[str, float]:
        """Means over all workers; every worker calls it equally often. Resets."""
        if not self._sums:
            return {}
        names = list(self._sums)
        first = self._sums[names[0]]
        packed = torch.stack(
            [
                *(self._sums[name].double() for name in names),
                first.new_tensor(self._weight).double(),
            ]
        )
        if is_distributed():
            dist.all_reduce(packed)
        numbers = packed.tolist()
        self._sums, self._weight = {}, 0.0
        return {name: numbers[i] / numbers[-1] for i, name in enumerate(names)}


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
