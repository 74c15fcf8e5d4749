"""Zero-shot classification by the cosine with the summed prompt features of each class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def class_vectors(bank: Tensor) -> Tensor:
    """Sum the raw prompt features of each class, as the published evaluation does.

    Args:
        bank: (C, J, D) features of C classes in J prompts.

    Returns:
        (C, D) of unit length.
    """
    return F.normalize(bank.sum(dim=1), dim=-1)


def zeroshot_predictions(features: Tensor, vectors: Tensor) -> Tensor:
    """Most similar class of each feature, the lowest on a tie.

    Args:
        features: (B, D) projected tokens.
        vectors: (C, D) of unit length.

    Returns:
        (B,) int64.
    """
    return (F.normalize(features.float(), dim=-1) @ vectors.T).argmax(dim=-1)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Fraction of equal entries.

    Args:
        predictions: (B,) predicted classes.
        labels: (B,) true classes.
    """
    return float(torch.eq(predictions, labels).float().mean())
