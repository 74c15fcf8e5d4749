"""Random numbers per sample, independent of the batch.

A :class:`SampleGenerator` is a counter-based generator: every number is a hash of (seed, epoch,
stream, sample id, call number, position). A sample therefore gets the same augmentation, mask and
drop-path decisions whatever the batch, rank, micro-batch or order, and nothing has to be saved
to continue a run. The functions of this module draw from such a generator, from a
:class:`torch.Generator`, or from torch's default generator (None).
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

# Constants of the splitmix64 generator, as signed 64-bit numbers.
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Shift right without the sign (torch's int64 shift is arithmetic)."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """Scramble 64-bit numbers (int64 of any shape) with the finalizer of splitmix64."""
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)


def _wrap(value: int) -> int:
    """Reduce a Python integer to the signed 64-bit range."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _mix_int(value: int) -> int:
    """Scramble one Python integer exactly as :func:`_mix` does, without a tensor."""
    bits = value % (1 << 64)
    bits = (bits ^ (bits >> 30)) * (_MIX_1 % (1 << 64)) % (1 << 64)
    bits = (bits ^ (bits >> 27)) * (_MIX_2 % (1 << 64)) % (1 << 64)
    return _wrap(bits ^ (bits >> 31))


class SampleGenerator:
    """Generator of random numbers keyed by seed, epoch, sample id and call number.

    Each method call advances the call counter, so two generators made with equal arguments return
    equal numbers when their methods are called in the same order with the same shapes. No value is
    read from the device.

    Args:
        seed: Seed of the run.
        sample_ids: (B,) int64 identities of the samples of this batch; the numbers are made on
            their device.
        epoch: Pass over the data; with a () int64 tensor on the device of ``sample_ids`` in its
            place, the numbers are the same, and a captured or compiled step can run in every epoch.
        stream: Separates independent uses for the same sample (augmentation, masking, ...).

    Raises:
        ValueError: If ``sample_ids`` is not a one-dimensional integer tensor.
    """

    def __init__(
        self, seed: int, sample_ids: Tensor, epoch: int | Tensor = 0, *, stream: int = 0
    ) -> None:
        if sample_ids.ndim != 1 or sample_ids.is_floating_point():
            raise ValueError(
                "sample_ids must be a one-dimensional integer tensor, found "
                f"shape {tuple(sample_ids.shape)} of {sample_ids.dtype}"
            )
        run_key: int | Tensor
        if isinstance(epoch, Tensor):
            run_key = _mix(_mix(_mix_int(seed) + epoch) + stream)
        else:
            run_key = _mix_int(_mix_int(_mix_int(seed) + epoch) + stream)
        self._keys = _mix(_mix(sample_ids.to(torch.int64) + _GOLDEN_GAMMA) ^ run_key)  # (B,)
        self._calls = 0

    @property
    def batch_size(self) -> int:
        """Return the number of samples."""
        return self._keys.shape[0]

    @property
    def device(self) -> torch.device:
        """Return the device of the numbers."""
        return self._keys.device

    def _bits(self, shape: tuple[int, ...]) -> Tensor:
        """Return (B, *shape) int64 numbers of 64 random bits and advance the call counter."""
        self._calls += 1
        key = _mix(self._keys + _wrap(self._calls * _MIX_1))  # (B,)
        count = math.prod(shape)
        position = torch.arange(1, count + 1, device=self.device)  # (count,)
        if torch.compiler.is_compiling():
            # Inductor would treat the product as a 32-bit index; adding a loaded value (zero) makes
            # it a 64-bit number.
            position = position + (key[:, None] & 0)
        return _mix(key[:, None] + position * _GOLDEN_GAMMA).view(self.batch_size, *shape)

    def uniform(self, *shape: int) -> Tensor:
        """Return (B, *shape) float32 numbers, uniform in [0, 1)."""
        return _shift_right(self._bits(shape), 40).float() * 2.0**-24

    def randint(self, high: int, *shape: int) -> Tensor:
        """Return (B, *shape) int64 numbers, uniform in [0, high).

        Raises:
            ValueError: If ``high`` is not in 1..2**31.
        """
        if not 1 <= high <= 1 << 31:
            raise ValueError(f"high must be in 1..2**31, found {high}")
        return (_shift_right(self._bits(shape), 32) * high) >> 32

    def permutation(self, n: int) -> Tensor:
        """Return (B, n) int64: an independent uniform permutation of 0..n-1 per sample."""
        return self._bits((n,)).argsort(dim=1, stable=True)


RandomSource: TypeAlias = "torch.Generator | SampleGenerator | None"
"""Source of the transforms' and masks' numbers; None is torch's default generator of the device."""


def _check_batch(source: SampleGenerator, batch: int) -> SampleGenerator:
    if source.batch_size != batch:
        raise ValueError(
            f"the random source was made for {source.batch_size} samples, the batch has {batch}"
        )
    return source


def _draw_device(source: torch.Generator | None, device: torch.device | str | None) -> torch.device:
    """Return the device to draw on: a torch.Generator draws only on its own."""
    return torch.device(device or "cpu") if source is None else source.device


def uniform(
    source: RandomSource, batch: int, *shape: int, device: torch.device | str | None = None
) -> Tensor:
    """Draw (batch, *shape) float32 numbers, uniform in [0, 1), from any random source.

    Args:
        source: Source of the numbers.
        batch: Number of samples; must be that of a :class:`SampleGenerator`.
        shape: Shape per sample.
        device: Device of the result.

    Raises:
        ValueError: If a sample generator was made for another batch size.
    """
    if isinstance(source, SampleGenerator):
        return _check_batch(source, batch).uniform(*shape).to(device)
    drawn = torch.rand(batch, *shape, generator=source, device=_draw_device(source, device))
    return drawn.to(device)


def randint(
    source: RandomSource,
    high: int,
    batch: int,
    *shape: int,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw (batch, *shape) int64 numbers, uniform in [0, high); see :func:`uniform`."""
    if isinstance(source, SampleGenerator):
        return _check_batch(source, batch).randint(high, *shape).to(device)
    size = (batch, *shape)
    drawn = torch.randint(high, size, generator=source, device=_draw_device(source, device))
    return drawn.to(device)


def permutation(
    source: RandomSource, n: int, batch: int, device: torch.device | str | None = None
) -> Tensor:
    """Draw (batch, n) int64: one uniform permutation of 0..n-1 per sample; see :func:`uniform`."""
    if isinstance(source, SampleGenerator):
        return _check_batch(source, batch).permutation(n).to(device)
    return uniform(source, batch, n, device=device).argsort(dim=1, stable=True)
