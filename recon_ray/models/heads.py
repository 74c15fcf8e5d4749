"""Heads of the encoder.

Dropout draws per sample (:mod:`recon_ray.points.random`), so that it does not depend on the batch.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from recon_ray.models.batch_norm import BatchNorm
from recon_ray.points import random
from recon_ray.points.random import RandomSource


class ContrastHead(nn.Module):
    """Projection of the class token to the unit sphere, for self-contrast."""

    def __init__(self, embed_dim: int, width: int = 128) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, width)
        self.norm1 = BatchNorm(width)
        self.fc2 = nn.Linear(width, width)
        self.norm2 = BatchNorm(width)

    def forward(self, token: Tensor) -> Tensor:
        """Map (B, D) to (B, width) float32 of norm 1."""
        x = self.norm2(self.fc2(F.relu(self.norm1(self.fc1(token)))))
        return F.normalize(x.float(), dim=-1)


class ClassHead(nn.Module):
    """Classifier of a feature vector: one layer, or three with batch norm and dropout.

    Args:
        width: Width of the feature.
        num_classes: Number of classes.
        kind: ``linear`` or ``mlp``.
        hidden: Width of both hidden layers of the latter.
        dropout: Part of the hidden units that is dropped in training.

    Raises:
        ValueError: If the kind is unknown.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        kind: str = "mlp",
        *,
        hidden: int = 256,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if kind not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, found {kind!r}")
        self.kind, self.dropout = kind, dropout
        self.fc1 = nn.Linear(width, num_classes if kind == "linear" else hidden)
        if kind == "mlp":
            self.norm1 = BatchNorm(hidden)
            self.fc2 = nn.Linear(hidden, hidden)
            self.norm2 = BatchNorm(hidden)
            self.fc3 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor, source: RandomSource = None) -> Tensor:
        """Map (B, width) to (B, num_classes) logits; dropout follows ``source``."""
        x = self.fc1(x)
        if self.kind == "linear":
            return x
        x = drop_units(F.relu(self.norm1(x)), self.dropout, source, enabled=self.training)
        x = F.relu(self.norm2(self.fc2(x)))
        return self.fc3(drop_units(x, self.dropout, source, enabled=self.training))


HEADS = ("linear", "mlp")
"""The kinds of :class:`ClassHead`."""


def drop_units(x: Tensor, rate: float, source: RandomSource, *, enabled: bool) -> Tensor:
    """Drop entries of (B, ...) at random and scale the others by 1 / (1 - rate).

    Args:
        x: (B, ...) activations.
        rate: Part that is dropped.
        source: Random numbers; those of a sample do not depend on the rest of the batch.
        enabled: Whether to drop at all (training).
    """
    if not enabled or rate == 0:
        return x
    numbers = random.uniform(source, *x.shape, device=x.device)
    return x * ((numbers >= rate) / (1.0 - rate)).to(x.dtype)
