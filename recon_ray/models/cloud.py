"""Base classes of all models: patches, stochastic depth, and features of the encoder.

Downstream features are class, image and text token, then the patches; gradients flow from the
tokens to the patches there (the reference's "finetune mode").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from recon_ray.models.encoder import ReconEncoder
from recon_ray.models.grouping import PatchEmbed, cut_patches
from recon_ray.models.transformer import Checkpointing
from recon_ray.points import ops, random
from recon_ray.points.random import RandomSource


class CloudModel(nn.Module):
    """Base of models that cut clouds into patches.

    Args:
        embed_dim: Width D.
        num_heads: Attention heads; must divide D.
        num_groups: Number G of patches.
        group_size: Points K in a patch.
        drop_path: Drop rate of the last block.
        fps_min_sq_norm: Points with a squared norm at or below this are never centers (except the
            first point); 1e-3 is the rule of the reference, which the published weights need, and
            -1 skips none.

    Attributes:
        arguments: All constructor arguments, which files of weights record.
        recomputes_embedding: Whether activation checkpointing includes the patch embedding. This
            lowers the peak only where other activations are kept at the same time: a model with one
            encoder and a small head has its peak in the embedding's own backward pass.

    Raises:
        ValueError: If the sizes do not fit each other.
    """

    recomputes_embedding = False

    arguments: dict[str, Any]

    def __init_subclass__(cls) -> None:
        """Let instances keep the arguments that they were made with."""
        make = cls.__dict__.get("__init__")
        if make is None:  # the one that it inherits records
            return

        @wraps(make)
        def recorded(self: CloudModel, *args: Any, **given: Any) -> None:  # noqa: ANN401
            if "arguments" not in self.__dict__:  # the outermost class
                bound = signature(make).bind(self, *args, **given)
                bound.apply_defaults()
                self.__dict__["arguments"] = dict([*bound.arguments.items()][1:])
            make(self, *args, **given)

        cls.__init__ = recorded  # type: ignore[method-assign]

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        num_groups: int,
        group_size: int,
        drop_path: float,
        fps_min_sq_norm: float,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide embed_dim={embed_dim}")
        self.embed_dim, self.num_groups, self.group_size = embed_dim, num_groups, group_size
        self.drop_path = drop_path
        self.fps_min_sq_norm = fps_min_sq_norm
        ops.backend()  # found here, so that a compiler need not trace twice

    def _cut(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return cut_patches(
            points, self.num_groups, self.group_size, min_sq_norm=self.fps_min_sq_norm
        )

    def _drop_numbers(self, source: RandomSource, points: Tensor, calls: int) -> Tensor | None:
        """Draw all decisions of stochastic depth of a forward at once: (B, calls)."""
        if not self.training or self.drop_path == 0:
            return None
        return random.uniform(source, len(points), calls, device=points.device)


def set_activation_checkpointing(model: nn.Module, enabled: bool) -> None:
    """Choose whether models in ``model`` compute activations again in the backward pass."""
    for whole in model.modules():
        if not isinstance(whole, CloudModel):
            continue
        for part in whole.modules():
            if isinstance(part, Checkpointing):
                pays = whole.recomputes_embedding or not isinstance(part, PatchEmbed)
                part.checkpointing = enabled and pays


class EncoderModel(CloudModel):
    """Base of models with one :class:`ReconEncoder`, and its features.

    Args:
        depth: Encoder blocks.
        patch_widths: Widths of the patch embedding.
        others: See :class:`CloudModel`.

    Raises:
        ValueError: If the sizes do not fit each other.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        num_groups: int,
        group_size: int,
        drop_path: float,
        patch_widths: Sequence[int],
        fps_min_sq_norm: float,
    ) -> None:
        super().__init__(
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_groups=num_groups,
            group_size=group_size,
            drop_path=drop_path,
            fps_min_sq_norm=fps_min_sq_norm,
        )
        self.encoder = ReconEncoder(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            drop_path=drop_path,
            patch_widths=patch_widths,
        )

    def _encode(self, points: Tensor, source: RandomSource) -> tuple[Tensor, Tensor]:
        """Encode all patches without masking and without stop-gradient."""
        patches, centers = self._cut(points)
        numbers = self._drop_numbers(source, points, self.encoder.drop_rates.shape[0])
        return self.encoder(patches, centers, drop_numbers=numbers)

    def forward_features(self, points: Tensor, source: RandomSource = None) -> Tensor:
        """Encode whole clouds: (B, N, 3) to (B, 3 + G, D), after the final norm.

        The first three tokens are class, image and text.
        """
        return torch.cat(self._encode(points, source), dim=1)

    def svm_features(self, points: Tensor) -> Tensor:
        """Return the (B, 2 D) features of the linear probe; see :func:`svm_pool`."""
        return svm_pool(self.forward_features(points))


def svm_pool(tokens: Tensor) -> Tensor:
    """Pool features for the linear probe (reference): (B, 3 + G, D) to (B, 2 D).

    They are the maximum over the three tokens, and maximum plus mean over the patches.
    """
    queries, x = tokens[:, :3], tokens[:, 3:]
    return torch.cat([queries.amax(dim=1), x.amax(dim=1) + x.mean(dim=1)], dim=-1)
