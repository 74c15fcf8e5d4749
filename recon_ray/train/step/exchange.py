"""Exchange of gradients in one message, which a CUDA graph can hold, and of statistics."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recon_ray.models.batch_norm import batch_norms
from recon_ray.torch_internals import copy_tensors


class FlatExchange:
    """Exchanges all gradients at once after the backward pass.

    The whole step is then one sequence of kernels and collectives, without hooks in the backward
    pass, and can be captured. Nothing hides the exchange.

    Args:
        module: The module, on the device; all workers begin with rank 0's values.
        precision: Of the message; the sum is divided in float32.
    """

    def __init__(self, module: nn.Module, *, precision: Literal["fp32", "bf16"]) -> None:
        self._parameters = [one for one in module.parameters() if one.requires_grad]
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        for value in [*module.parameters(), *module.buffers()]:
            dist.broadcast(value.detach(), src=0)

    def __call__(self) -> None:
        """Replace the gradients by their means; all workers have gradients of the same weights."""
        gradients = [one.grad for one in self._parameters if one.grad is not None]
        message = torch.cat([gradient.flatten() for gradient in gradients]).to(self._dtype)
        dist.all_reduce(message)
        _scatter(message.float() / dist.get_world_size(), gradients)


class StatisticsExchange:
    """Takes over rank 0's batch-norm statistics, where they are not synchronized already.

    After every step, so that the workers evaluate one model and store that one.
    """

    def __init__(self, module: nn.Module) -> None:
        norms = [one for _, one in batch_norms(module)]
        self._values = [value for one in norms for value in (one.running_mean, one.running_var)]

    def __call__(self) -> None:
        """Replace the running statistics by those of rank 0."""
        if self._values:
            flat = torch.cat(self._values)
            dist.broadcast(flat, src=0)
            _scatter(flat, self._values)


def _scatter(flat: Tensor, targets: list[Tensor]) -> None:
    parts = flat.split([target.numel() for target in targets])
    shaped = [part.view_as(target) for part, target in zip(parts, targets, strict=True)]
    copy_tensors(targets, shaped)
