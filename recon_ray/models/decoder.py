"""Decoder of hidden patches, and the output of pre-training models.

The decoder has its own position network; its blocks are ordinary pre-norm blocks. Only the last M
positions, the hidden ones, pass the final norm.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from recon_ray.models.encoder import make_token
from recon_ray.models.grouping import PositionEmbed
from recon_ray.models.transformer import Block, Checkpointing, drop_path_rates, drop_path_scales


class ReconOutput(NamedTuple):
    """Output of a pre-training model.

    Attributes:
        prediction: (B, M, K, 3) reconstructed hidden patches, relative to their centers.
        target: (B, M, K, 3) the hidden patches themselves.
        image: (B, d) image token in the image teacher's space, or None.
        text: (B, d) text token in the text teacher's space, or None.
        contrast: (B, 128) projected class token of norm 1, or None.
        mask: (B, G) bool, true where hidden.
        centers: (B, G, 3) patch centers.
    """

    prediction: Tensor
    target: Tensor
    image: Tensor | None
    text: Tensor | None
    contrast: Tensor | None
    mask: Tensor
    centers: Tensor


class ReconDecoder(Checkpointing):
    """Decoder that reconstructs hidden patches from the encoded visible ones.

    Args:
        embed_dim: Width D.
        group_size: Points K in a patch.
        drop_path: Drop rate of the last block.

    Raises:
        ValueError: If the heads do not divide the width.
    """

    drop_rates: Tensor

    def __init__(
        self, *, embed_dim: int, depth: int, num_heads: int, group_size: int, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"decoder_num_heads={num_heads} does not divide embed_dim={embed_dim}")
        self.mask_token = make_token(embed_dim)
        self.pos_embed = PositionEmbed(embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, 3 * group_size)
        rates = drop_path_rates(drop_path, depth, Block.drop_path_calls)
        self.register_buffer("drop_rates", rates, persistent=False)

    def forward(
        self,
        x: Tensor,
        visible_centers: Tensor,
        hidden_centers: Tensor,
        drop_numbers: Tensor | None = None,
    ) -> Tensor:
        """Reconstruct hidden patches.

        Args:
            x: (B, V, D) encoded visible patches.
            visible_centers: (B, V, 3).
            hidden_centers: (B, M, 3).
            drop_numbers: (B, 2 depth) uniform numbers that decide stochastic depth, or None.

        Returns:
            (B, M, K, 3) points relative to the hidden centers.
        """
        batch, num_hidden, _ = hidden_centers.shape
        mask_tokens = self.mask_token.to(x.dtype).expand(batch, num_hidden, -1)
        x = torch.cat([x, mask_tokens], dim=1)  # (B, G, D)
        x_pos = self.pos_embed(torch.cat([visible_centers, hidden_centers], dim=1))  # (B, G, D)
        scales = None if drop_numbers is None else drop_path_scales(self.drop_rates, drop_numbers)
        for number, block in enumerate(self.blocks):
            step = None if scales is None else scales[2 * number : 2 * number + 2]
            x = self._call(block, x + x_pos, scales=step)
        x = self.head(self.norm(x[:, -num_hidden:]))  # (B, M, 3 K)
        return x.view(batch, num_hidden, -1, 3)  # (B, M, K, 3)
