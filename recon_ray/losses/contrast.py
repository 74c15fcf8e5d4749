"""Self-contrast of class tokens within a batch (ReCon paper, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def self_contrast(z: Tensor, labels: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Pull each sample to the mean of its class and away from all other classes.

    For sample i the similarities to its class, itself included, are averaged to one positive logit;
    the similarities to every sample of another class are the negative ones. Without another class
    the loss is 0.

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
