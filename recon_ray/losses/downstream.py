"""Losses of the downstream tasks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def classification_losses(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Compute the cross-entropy without label smoothing (reference).

    Args:
        logits: (B, C).
        labels: (B,) classes, below C.

    Returns:
        ``loss`` and ``accuracy`` (a fraction), both () float32.
    """
    loss = F.cross_entropy(logits.float(), labels)
    accuracy = (logits.detach().argmax(dim=-1) == labels).float().mean()
    return {"loss": loss, "accuracy": accuracy}


def segmentation_losses(log_probs: Tensor, parts: Tensor) -> dict[str, Tensor]:
    """Compute the negative log-likelihood, the mean over all points (reference).

    Args:
        log_probs: (B, N, P) log-probabilities.
        parts: (B, N) integer parts, below P.

    Returns:
        ``loss`` and ``accuracy`` (a fraction of all points), both () float32.
    """
    parts = parts.long()
    loss = F.nll_loss(log_probs.float().flatten(0, 1), parts.flatten())
    accuracy = (log_probs.detach().argmax(dim=-1) == parts).float().mean()
    return {"loss": loss, "accuracy": accuracy}
