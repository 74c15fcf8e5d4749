"""Attention of the query tokens of a trained model, which the models themselves do not keep."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recon_ray.models.cloud import CloudModel
from recon_ray.models.encoder import PlainEncoder, ReconEncoder
from recon_ray.models.grouping import index_patches
from recon_ray.models.transformer import ReconBlock

#: Query tokens of a :class:`~recon_ray.models.encoder.ReconEncoder`, in its order.
RECON_TOKENS = ("class", "image", "text")


class TokenAttention(NamedTuple):
    """Attention of the query tokens to the patches.

    Attributes:
        tokens: Names of the Q tokens.
        weights: (B, depth, Q, H, G). Over the patches they sum to 1, or to less where the tokens
            also attend to each other (two-tower models).
        idx: (B, G, K) indices of the points of each patch.
    """

    tokens: tuple[str, ...]
    weights: Tensor
    idx: Tensor


@torch.no_grad()
def token_attention(model: CloudModel, points: Tensor) -> TokenAttention:
    """Encode whole clouds and record the attention of the query tokens.

    Args:
        model: Any of the models; it runs in evaluation mode.
        points: (B, N, 3) clouds, in the unit sphere.
    """
    patches, centers, idx = index_patches(
        points, model.num_groups, model.group_size, min_sq_norm=model.fps_min_sq_norm
    )
    was_training = model.training
    model.eval()
    noted = [_note(encoder, patches, centers) for encoder in encoders_with_tokens(model)]
    model.train(was_training)
    tokens = tuple(name for encoder in encoders_with_tokens(model) for name in _tokens(encoder))
    return TokenAttention(tokens, torch.cat(noted, dim=2), idx)


def encoders_with_tokens(model: CloudModel) -> list[ReconEncoder | PlainEncoder]:
    """List the encoders of a model that have query tokens and are used."""
    unread = {"MDM": "contrast_encoder", "CMC": "encoder"}.get(getattr(model, "stream", "ALL"))
    names = [name for name in ("encoder", "contrast_encoder") if name != unread]
    found = [getattr(model, name) for name in names if hasattr(model, name)]
    return [encoder for encoder in found if _tokens(encoder)]


def _tokens(encoder: nn.Module) -> tuple[str, ...]:
    return encoder.tokens if isinstance(encoder, PlainEncoder) else RECON_TOKENS


def _note(encoder: nn.Module, patches: Tensor, centers: Tensor) -> Tensor:
    """Run an encoder and return the weights (B, depth, Q, H, G) of its tokens.

    Hooks read the inputs of the blocks, so that they are exactly those of the encoder.
    """
    noted: list[Tensor] = []
    num_tokens = len(_tokens(encoder))

    def note(block: Any, inputs: tuple[Any, ...]) -> None:  # noqa: ANN401 - one of two blocks
        if isinstance(block, ReconBlock):
            weights = block.attention(*inputs[:2])  # (B, H, Q, G)
        else:
            weights = block.attention(inputs[0])[:, :, :num_tokens, num_tokens:]
        noted.append(weights.transpose(1, 2))

    hooks = [block.register_forward_pre_hook(note) for block in encoder.blocks]  # type: ignore[union-attr]
    try:
        encoder(patches, centers)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(noted, dim=1)
