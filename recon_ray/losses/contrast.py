"""Self-contrast of class tokens within a batch (ReCon paper, section 3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    """Join the rows of all workers; every worker then computes the same loss from them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # noqa: ANN401
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ANN401
        total = grads[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather_batch(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Join vectors and labels of all workers, so that the loss is that of the global batch.

    Gradients are right after the usual averaging over workers. Without a process group, or with
    one worker, the arguments come back as they are.

    Args:
        z: (B, d) vectors; all workers must have the same B.
        labels: (B,) classes.

    Returns:
        (W B, d) vectors and (W B,) labels of W workers, in the order of their ranks.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return z, labels
    everyone = [torch.empty_like(labels) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, labels.contiguous())
    return _GatherRows.apply(z), torch.cat(everyone)


def self_contrast(z: Tensor, labels: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Pull each sample to the mean of its class and away from all other classes.

    For sample i the similarities to its class, itself included, are averaged first; that one
    positive logit stands against those to every sample of another class. Without another class the
    loss is 0.

    Args:
        z: (B, d) vectors of norm 1.
        labels: (B,) class of each sample.
        temperature: Divides all similarities.

    Returns:
        () float32, the mean over the samples.

    Raises:
        ValueError: If the numbers of vectors and labels differ.
    """
    if labels.shape != z.shape[:1]:
        raise ValueError(
            f"labels must have shape ({z.shape[0]},), one a vector, found {tuple(labels.shape)}"
        )
    with torch.autocast(z.device.type, enabled=False):
        logits = (z.float() @ z.float().T) / temperature  # (B, B)
        same = labels[:, None] == labels[None, :]
        positive = logits.masked_fill(~same, 0.0).sum(1) / same.sum(1)  # (B,)
        negatives = logits.masked_fill(same, float("-inf"))
        everything = torch.cat([positive[:, None], negatives], dim=1).logsumexp(1)
        return (everything - positive).mean()
