"""Encoders of patches and query tokens, shared by pre-training and all downstream models.

Positions are added before every block, not once. The final norm is one layer for tokens and
patches: with the stop-gradient of pre-training it is the only part of the patch path that gets
gradients from the tokens' losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recon_ray.models.grouping import PatchEmbed, PositionEmbed
from recon_ray.models.transformer import (
    Block,
    Checkpointing,
    ReconBlock,
    drop_path_rates,
    drop_path_scales,
)


def make_token(dim: int) -> nn.Parameter:
    """Make a token (1, 1, D) of zeros."""
    return nn.Parameter(torch.zeros(1, 1, dim))


def _stacked(tokens: Sequence[Tensor]) -> Tensor:
    """Join Q tokens (1, 1, D) to (1, Q, D), with contiguous gradients."""
    return torch.stack([token.flatten() for token in tokens]).unsqueeze(0)


class ReconEncoder(Checkpointing):
    """Encoder of patches with three query tokens, which only read the patches.

    Args:
        embed_dim: Width D.
        drop_path: Drop rate of the last block; the rate grows linearly from 0.
        patch_widths: Widths of the patch embedding.
    """

    drop_rates: Tensor

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        drop_path: float = 0.0,
        patch_widths: Sequence[int] = (128, 256, 512),
    ) -> None:
        super().__init__()
        self.embed = PatchEmbed(embed_dim, patch_widths)
        self.pos_embed = PositionEmbed(embed_dim)
        self.class_token, self.class_pos = make_token(embed_dim), make_token(embed_dim)
        self.image_token, self.image_pos = make_token(embed_dim), make_token(embed_dim)
        self.text_token, self.text_pos = make_token(embed_dim), make_token(embed_dim)
        self.blocks = nn.ModuleList(ReconBlock(embed_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        rates = drop_path_rates(drop_path, depth, ReconBlock.drop_path_calls)
        self.register_buffer("drop_rates", rates, persistent=False)

    def forward_blocks(
        self,
        patches: Tensor,
        centers: Tensor,
        *,
        context: Tensor | None = None,
        stop_gradient: bool = False,
        drop_numbers: Tensor | None = None,
        keep: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encode as :meth:`forward` does, without the final norm.

        Args:
            patches: (B, V, K, 3) visible patches.
            centers: (B, V, 3) their centers.
            context: (B, M, K, 3) hidden patches; they only enter the embedding's batch statistics.
            stop_gradient: Keep the tokens' losses from reaching the patch path.
            drop_numbers: (B, 4 depth) uniform numbers that decide stochastic depth, or None.
            keep: Numbers of the blocks whose patches are returned too.

        Returns:
            Query tokens (B, 3, D), patches (B, V, D), and the patches after each block of ``keep``.
        """
        x, x_pos = self.embed(patches, context), self.pos_embed(centers)  # (B, V, D)
        queries = _stacked((self.class_token, self.image_token, self.text_token))
        queries = queries.expand(x.shape[0], -1, -1)  # (B, 3, D)
        queries_pos = _stacked((self.class_pos, self.image_pos, self.text_pos))
        scales = None if drop_numbers is None else drop_path_scales(self.drop_rates, drop_numbers)
        kept: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            step = None if scales is None else scales[4 * number : 4 * number + 4]
            inputs = queries + queries_pos, x + x_pos
            queries, x = self._call(block, *inputs, stop_gradient=stop_gradient, scales=step)
            if number in keep:
                kept.append(x)
        return queries, x, kept

    def forward(
        self,
        patches: Tensor,
        centers: Tensor,
        *,
        context: Tensor | None = None,
        stop_gradient: bool = False,
        drop_numbers: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode patches and query tokens; the arguments are those of :meth:`forward_blocks`.

        Returns:
            Query tokens (B, 3, D) in the order class, image, text, and patches (B, V, D), both
            after the final norm.
        """
        queries, x, _ = self.forward_blocks(
            patches,
            centers,
            context=context,
            stop_gradient=stop_gradient,
            drop_numbers=drop_numbers,
        )
        return self.norm(queries), self.norm(x)


class PlainEncoder(Checkpointing):
    """Encoder of ordinary pre-norm blocks, in which tokens and patches attend to each other.

    Args:
        tokens: Names of the query tokens in front of the patches; may be empty.
        embed_dim: Width D.
        drop_path: Drop rate of the last block; the rate grows linearly from 0.
        patch_widths: Widths of the patch embedding.
    """

    drop_rates: Tensor

    def __init__(
        self,
        tokens: Sequence[str] = (),
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        drop_path: float = 0.0,
        patch_widths: Sequence[int] = (128, 256, 512),
    ) -> None:
        super().__init__()
        self.tokens = tuple(tokens)
        self.embed = PatchEmbed(embed_dim, patch_widths)
        self.pos_embed = PositionEmbed(embed_dim)
        for name in self.tokens:
            self.register_parameter(f"{name}_token", make_token(embed_dim))
            self.register_parameter(f"{name}_pos", make_token(embed_dim))
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        rates = drop_path_rates(drop_path, depth, Block.drop_path_calls)
        self.register_buffer("drop_rates", rates, persistent=False)

    def forward(
        self,
        patches: Tensor,
        centers: Tensor,
        *,
        context: Tensor | None = None,
        drop_numbers: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode patches and query tokens.

        Args:
            patches: (B, V, K, 3) visible patches.
            centers: (B, V, 3) their centers.
            context: (B, M, K, 3) hidden patches; they only enter the embedding's batch statistics.
            drop_numbers: (B, 2 depth) uniform numbers that decide stochastic depth, or None.

        Returns:
            Query tokens (B, Q, D) and patches (B, V, D), both after the final norm.
        """
        x, x_pos = self.embed(patches, context), self.pos_embed(centers)  # (B, V, D)
        num_tokens = len(self.tokens)
        if num_tokens:
            queries = _stacked([self.get_parameter(f"{name}_token") for name in self.tokens])
            queries_pos = _stacked([self.get_parameter(f"{name}_pos") for name in self.tokens])
            batch = x.shape[0]
            x = torch.cat([queries.to(x.dtype).expand(batch, -1, -1), x], dim=1)  # (B, Q + V, D)
            x_pos = torch.cat([queries_pos.to(x_pos.dtype).expand(batch, -1, -1), x_pos], dim=1)
        scales = None if drop_numbers is None else drop_path_scales(self.drop_rates, drop_numbers)
        for number, block in enumerate(self.blocks):
            step = None if scales is None else scales[2 * number : 2 * number + 2]
            x = self._call(block, x + x_pos, scales=step)
        x = self.norm(x)
        return x[:, :num_tokens], x[:, num_tokens:]
