"""Attention, the two kinds of blocks, and stochastic depth.

Unusual in :class:`ReconBlock`: the residual carries the *normalized* value, so that no identity
path runs through the depth; patches never read the tokens, and the tokens never read each other;
both streams read the normalized patches from before the block's own self-attention. Input
projections of attention have no bias. Stochastic depth draws per sample and per residual branch
(four a block), with rates that grow linearly over encoder and decoder alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def drop_path_rates(maximum: float, depth: int, calls: int) -> Tensor:
    """Return (depth * calls,) drop rates: linear in the depth from 0 to ``maximum``."""
    return torch.linspace(0.0, maximum, depth).repeat_interleave(calls)


def drop_path_scales(rates: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
    """Decide for each sample which residual branches are kept.

    Args:
        rates: (calls,) probabilities of dropping.
        numbers: (B, calls) uniform random numbers.

    Returns:
        For each call a (B, 1, 1) factor of the branch: 0 where dropped, 1 / (1 - rate) where kept.
    """
    scales = (numbers >= rates) / (1.0 - rates)  # (B, calls)
    return scales[:, :, None, None].unbind(1)


def _add(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """Add a residual branch, scaled per sample."""
    return x + branch if scale is None else x + branch * scale.to(branch.dtype)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Return attention weights (B, H, Q, L), which sum to 1 over L.

    Args:
        q: (B, H, Q, D / H) queries.
        k: (B, H, L, D / H) keys.
    """
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention without bias in the input projection; H heads of width D / H."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def _project(self, x: Tensor) -> Tensor:
        """Return queries, keys and values: (3, B, H, L, D / H)."""
        batch, length, dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        return qkv.permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within (B, L, D)."""
        q, k, v = self._project(x)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, H, L, D / H)
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))

    def weights(self, x: Tensor) -> Tensor:
        """Return the weights (B, H, L, L) with which :meth:`forward` mixes the values."""
        q, k, _ = self._project(x)
        return attention_weights(q, k)


class CrossAttention(nn.Module):
    """Multi-head attention of queries to other tokens; H heads of width D / H."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def _project(self, queries: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, H, Q, D / H), and keys and values (B, H, L, D / H)."""
        batch, num_queries, dim = queries.shape
        heads, width = self.num_heads, dim // self.num_heads
        q = self.q(queries).view(batch, num_queries, heads, width).transpose(1, 2)
        k, v = self.kv(x).view(batch, x.shape[1], 2, heads, width).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, queries: Tensor, x: Tensor) -> Tensor:
        """Attend from (B, Q, D) queries to (B, L, D) tokens."""
        mixed = F.scaled_dot_product_attention(*self._project(queries, x))  # (B, H, Q, D / H)
        return self.proj(mixed.transpose(1, 2).reshape(queries.shape))

    def weights(self, queries: Tensor, x: Tensor) -> Tensor:
        """Return the weights (B, H, Q, L) with which :meth:`forward` mixes the values."""
        q, k, _ = self._project(queries, x)
        return attention_weights(q, k)


class Mlp(nn.Module):
    """Two layers with GELU, four times as wide in between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Ordinary pre-norm transformer block, of the decoder and of plain encoders."""

    drop_path_calls = 2

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor, scales: Sequence[Tensor] | None = None) -> Tensor:
        """Transform (B, L, D); ``scales`` are the two factors of stochastic depth."""
        first, second = scales or (None, None)
        x = _add(x, self.attn(self.norm1(x)), first)
        return _add(x, self.mlp(self.norm2(x)), second)

    def attention(self, x: Tensor) -> Tensor:
        """Return the attention (B, H, L, L) for the input of :meth:`forward`."""
        return self.attn.weights(self.norm1(x))


class ReconBlock(nn.Module):
    """Block of two parallel streams: patches attend to each other, query tokens attend to patches.

    The residual carries the normalized value, as in the reference: released weights need it.
    Patches never read the tokens and the tokens never read each other.
    """

    drop_path_calls = 4

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)
        self.contrast_norm1 = nn.LayerNorm(dim)
        self.contrast_attn = CrossAttention(dim, num_heads)
        self.contrast_norm2 = nn.LayerNorm(dim)
        self.contrast_mlp = Mlp(dim)

    def forward(
        self,
        queries: Tensor,
        x: Tensor,
        *,
        stop_gradient: bool,
        scales: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Transform both streams.

        Args:
            queries: (B, Q, D) query tokens.
            x: (B, L, D) patch tokens.
            stop_gradient: Keep the queries' losses from reaching the patches (pre-training).
            scales: Four factors of stochastic depth.

        Returns:
            The new (B, Q, D) queries and (B, L, D) patch tokens.
        """
        scale = scales or (None, None, None, None)
        queries, x = self.contrast_norm1(queries), self.norm1(x)
        seen = x.detach() if stop_gradient else x
        queries = _add(queries, self.contrast_attn(queries, seen), scale[0])
        x = _add(x, self.attn(x), scale[1])
        queries, x = self.contrast_norm2(queries), self.norm2(x)
        queries = _add(queries, self.contrast_mlp(queries), scale[2])
        return queries, _add(x, self.mlp(x), scale[3])

    def attention(self, queries: Tensor, x: Tensor) -> Tensor:
        """Return the attention (B, H, Q, L) of the queries in the input of :meth:`forward`."""
        return self.contrast_attn.weights(self.contrast_norm1(queries), self.norm1(x))


T = TypeVar("T")


class Checkpointing(nn.Module):
    """Module that can keep the inputs of its parts in place of their activations.

    Attributes:
        checkpointing: Do so in training.
    """

    checkpointing = False

    def _call(self, part: Callable[..., T], *arguments: Any, **options: Any) -> T:  # noqa: ANN401
        """Call a part; with checkpointing it is called again in the backward pass.

        It has no side effects and draws nothing from torch's generator.
        """
        if not (self.checkpointing and torch.is_grad_enabled()):
            return part(*arguments, **options)
        result: T = checkpoint(
            part, *arguments, use_reentrant=False, preserve_rng_state=False, **options
        )
        return result
