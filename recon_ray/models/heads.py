"""Heads on top of the encoder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from recon_ray.models.batch_norm import BatchNorm


class ContrastHead(nn.Module):
    """Project the class token to the unit sphere on which self-contrast works.

    Args:
        embed_dim: Width D of the token.
        width: Width of both layers.
    """

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
