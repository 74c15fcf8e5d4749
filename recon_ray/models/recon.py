"""The ReCon model: masked patch reconstruction with a contrast branch (ReCon paper, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recon_ray.models.grouping import PatchEmbed, PositionEmbed, cut_patches
from recon_ray.models.heads import ContrastHead
from recon_ray.models.masking import MASKS, check_mask, split_by_mask
from recon_ray.models.transformer import Block, ReconBlock, drop_path_rates, drop_path_scales
from recon_ray.points import ops, random
from recon_ray.points.random import RandomSource


class ReconOutput(NamedTuple):
    """What a pre-training forward gives.

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


def _token(dim: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(1, 1, dim))


def _stacked(*tokens: Tensor) -> Tensor:
    """Put Q tokens (1, 1, D) together: (1, Q, D); their gradients come back contiguous."""
    return torch.stack([token.flatten() for token in tokens]).unsqueeze(0)


def _init_truncated(module: nn.Module) -> None:
    """Draw weights from a normal of deviation 0.02 cut at 2 (reference); biases are 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _init_xavier(module: nn.Module) -> None:
    """Draw weights from Xavier's uniform distribution (reference's decoder); biases are 0."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _init_projection(module: nn.Module) -> None:
    """Draw weights around 0.02 with deviation 0.01 (reference's projections); biases are 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, mean=0.02, std=0.01)
        nn.init.zeros_(module.bias)


class ReconEncoder(nn.Module):
    """Embedding, query tokens and the blocks; shared by pre-training and all downstream models.

    Args:
        embed_dim: Width D.
        depth: Number of blocks.
        num_heads: Number of attention heads.
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
        self.class_token, self.class_pos = _token(embed_dim), _token(embed_dim)
        self.image_token, self.image_pos = _token(embed_dim), _token(embed_dim)
        self.text_token, self.text_pos = _token(embed_dim), _token(embed_dim)
        self.blocks = nn.ModuleList(ReconBlock(embed_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        rates = drop_path_rates(drop_path, depth, ReconBlock.drop_path_calls)
        self.register_buffer("drop_rates", rates, persistent=False)
        self.drop_path = drop_path

    def init_weights(self) -> None:
        """Draw the reference's initial weights."""
        self.apply(_init_truncated)
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith(("_token", "_pos")):
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(
        self,
        patches: Tensor,
        centers: Tensor,
        *,
        context: Tensor | None = None,
        stop_gradient: bool = False,
        drop_numbers: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode patches and query tokens.

        Args:
            patches: (B, V, K, 3) visible patches.
            centers: (B, V, 3) their centers.
            context: (B, M, K, 3) hidden patches; they only enter the embedding's batch statistics.
            stop_gradient: Keep the tokens' losses from reaching the patch path.
            drop_numbers: (B, 4 depth) uniform numbers that decide stochastic depth, or None.

        Returns:
            Query tokens (B, 3, D) in the order class, image, text, and patches (B, V, D), both
            after the final norm.
        """
        x, x_pos = self.embed(patches, context), self.pos_embed(centers)  # (B, V, D)
        queries = _stacked(self.class_token, self.image_token, self.text_token)
        queries = queries.expand(x.shape[0], -1, -1)  # (B, 3, D)
        queries_pos = _stacked(self.class_pos, self.image_pos, self.text_pos)
        scales = None if drop_numbers is None else drop_path_scales(self.drop_rates, drop_numbers)
        for number, block in enumerate(self.blocks):
            step = None if scales is None else scales[4 * number : 4 * number + 4]
            queries, x = block(
                queries + queries_pos, x + x_pos, stop_gradient=stop_gradient, scales=step
            )
        return self.norm(queries), self.norm(x)


class ReconDecoder(nn.Module):
    """Reconstruct hidden patches from the encoded visible ones.

    Args:
        embed_dim: Width D.
        depth: Number of blocks.
        num_heads: Number of attention heads.
        group_size: Points K in a patch.
        drop_path: Drop rate of the last block.
    """

    drop_rates: Tensor

    def __init__(
        self, *, embed_dim: int, depth: int, num_heads: int, group_size: int, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.mask_token = _token(embed_dim)
        self.pos_embed = PositionEmbed(embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, 3 * group_size)
        rates = drop_path_rates(drop_path, depth, Block.drop_path_calls)
        self.register_buffer("drop_rates", rates, persistent=False)

    def init_weights(self) -> None:
        """Draw the reference's initial weights; position network and head keep torch's."""
        self.blocks.apply(_init_xavier)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self,
        x: Tensor,
        visible_centers: Tensor,
        hidden_centers: Tensor,
        drop_numbers: Tensor | None = None,
    ) -> Tensor:
        """Reconstruct.

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
        x_pos = self.pos_embed(torch.cat([visible_centers, hidden_centers], dim=1))
        scales = None if drop_numbers is None else drop_path_scales(self.drop_rates, drop_numbers)
        for number, block in enumerate(self.blocks):
            x = block(x + x_pos, None if scales is None else scales[2 * number : 2 * number + 2])
        x = self.head(self.norm(x[:, -num_hidden:]))  # (B, M, 3 K)
        return x.view(batch, num_hidden, -1, 3)


class Recon(nn.Module):
    """ReCon for pre-training, and the features of a pre-trained one.

    Args:
        embed_dim: Width D.
        depth: Encoder blocks.
        num_heads: Attention heads; must divide D.
        num_groups: Number G of patches.
        group_size: Points K in a patch.
        decoder_depth: Decoder blocks.
        decoder_num_heads: Decoder heads; those of the encoder by default.
        drop_path: Drop rate of the last block of encoder and decoder.
        mask_ratio: Part of the patches that is hidden, rounded down.
        mask_type: "random" or "block".
        image_dim: Width of the image teacher's features, or None without that teacher.
        text_dim: Width of the text teacher's features, or None without that teacher.
        self_contrast: Have the head for the class token's self-contrast.
        patch_widths: Widths of the patch embedding.
        fps_min_sq_norm: Skip rule of the sampling; 1e-3 reproduces the reference's.

    Raises:
        ValueError: If the sizes do not fit each other.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_groups: int = 64,
        group_size: int = 32,
        decoder_depth: int = 4,
        decoder_num_heads: int | None = None,
        drop_path: float = 0.1,
        mask_ratio: float = 0.6,
        mask_type: str = "random",
        image_dim: int | None = 768,
        text_dim: int | None = 512,
        self_contrast: bool = False,
        patch_widths: Sequence[int] = (128, 256, 512),
        fps_min_sq_norm: float = -1.0,
    ) -> None:
        super().__init__()
        decoder_num_heads = decoder_num_heads or num_heads
        self.num_masked = int(mask_ratio * num_groups)
        _check_sizes(embed_dim, num_heads, decoder_num_heads, num_groups, self.num_masked)
        if mask_type not in MASKS:
            raise ValueError(f"mask_type must be one of {', '.join(MASKS)}, found {mask_type!r}")
        self.embed_dim, self.num_groups, self.group_size = embed_dim, num_groups, group_size
        self.mask_type, self.drop_path = mask_type, drop_path
        self.fps_min_sq_norm = fps_min_sq_norm
        self.encoder = ReconEncoder(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            drop_path=drop_path,
            patch_widths=patch_widths,
        )
        self.decoder = ReconDecoder(
            embed_dim=embed_dim,
            depth=decoder_depth,
            num_heads=decoder_num_heads,
            group_size=group_size,
            drop_path=drop_path,
        )
        self.image_proj = None if image_dim is None else nn.Linear(embed_dim, image_dim)
        self.text_proj = None if text_dim is None else nn.Linear(embed_dim, text_dim)
        self.contrast_head = ContrastHead(embed_dim) if self_contrast else None
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the reference's initial weights from torch's default generator."""
        self.encoder.init_weights()
        self.decoder.init_weights()
        for head in (self.image_proj, self.text_proj, self.contrast_head):
            if head is not None:
                head.apply(_init_projection)

    def _cut(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return cut_patches(
            points, self.num_groups, self.group_size, min_sq_norm=self.fps_min_sq_norm
        )

    def _drop_numbers(self, source: RandomSource, points: Tensor, calls: int) -> Tensor | None:
        """Draw all decisions of stochastic depth of a forward at once: (B, calls)."""
        if not self.training or self.drop_path == 0:
            return None
        return random.uniform(source, len(points), calls, device=points.device)

    def forward(
        self, points: Tensor, *, mask: Tensor | None = None, source: RandomSource = None
    ) -> ReconOutput:
        """Hide patches, encode the others, reconstruct the hidden ones.

        Args:
            points: (B, N, 3) clouds, in the unit sphere.
            mask: (B, G) bool to use in place of a random mask, true where hidden.
            source: Random numbers of the mask and of stochastic depth.

        Returns:
            Prediction, target and projected tokens; see :class:`ReconOutput`.

        Raises:
            ValueError: If a given mask does not fit.
        """
        patches, centers = self._cut(points)  # (B, G, K, 3), (B, G, 3)
        if mask is None:
            num_masked = self.num_masked
            mask = MASKS[self.mask_type](centers, num_masked, source)
        else:
            num_masked = check_mask(mask, len(points), self.num_groups)
        visible, hidden = split_by_mask(mask, num_masked)  # (B, V), (B, M)
        visible_centers = ops.gather_points(centers, visible)
        hidden_patches = _pick_patches(patches, hidden)
        encoder_calls = self.encoder.drop_rates.shape[0]
        calls = encoder_calls + self.decoder.drop_rates.shape[0]
        numbers = self._drop_numbers(source, points, calls)
        queries, x = self.encoder(
            _pick_patches(patches, visible),
            visible_centers,
            context=hidden_patches,
            stop_gradient=True,
            drop_numbers=None if numbers is None else numbers[:, :encoder_calls],
        )
        prediction = self.decoder(
            x,
            visible_centers,
            ops.gather_points(centers, hidden),
            None if numbers is None else numbers[:, encoder_calls:],
        )
        return ReconOutput(
            prediction=prediction,
            target=hidden_patches,
            image=None if self.image_proj is None else self.image_proj(queries[:, 1]),
            text=None if self.text_proj is None else self.text_proj(queries[:, 2]),
            contrast=None if self.contrast_head is None else self.contrast_head(queries[:, 0]),
            mask=mask,
            centers=centers,
        )

    def _encode(self, points: Tensor, source: RandomSource) -> tuple[Tensor, Tensor]:
        """Encode all patches without masking and without stop-gradient."""
        patches, centers = self._cut(points)
        numbers = self._drop_numbers(source, points, self.encoder.drop_rates.shape[0])
        return self.encoder(patches, centers, drop_numbers=numbers)

    def forward_features(self, points: Tensor, source: RandomSource = None) -> Tensor:
        """Encode whole clouds: (B, N, 3) to (B, 3 + G, D), after the final norm.

        The first three tokens are class, image and text. Gradients flow from the tokens to the
        patches (the reference's "finetune mode").
        """
        return torch.cat(self._encode(points, source), dim=1)

    def encode_image(self, points: Tensor, source: RandomSource = None) -> Tensor:
        """Encode (B, N, 3) clouds in the image teacher's space: (B, d), not normalized.

        Raises:
            ValueError: If the model was built without an image teacher.
        """
        if self.image_proj is None:
            raise ValueError("this model has no image projection; it was built with image_dim=None")
        return self.image_proj(self._encode(points, source)[0][:, 1])

    def encode_text(self, points: Tensor, source: RandomSource = None) -> Tensor:
        """Encode (B, N, 3) clouds in the text teacher's space: (B, d), not normalized.

        Raises:
            ValueError: If the model was built without a text teacher.
        """
        if self.text_proj is None:
            raise ValueError("this model has no text projection; it was built with text_dim=None")
        return self.text_proj(self._encode(points, source)[0][:, 2])

    def svm_features(self, points: Tensor) -> Tensor:
        """Give the (B, 2 D) features of the linear probe; see :func:`svm_pool`."""
        return svm_pool(self.forward_features(points))


def svm_pool(tokens: Tensor) -> Tensor:
    """Pool features for the linear probe (reference): (B, 3 + G, D) to (B, 2 D).

    They are the maximum over the three tokens, and maximum plus mean over the patches.
    """
    queries, x = tokens[:, :3], tokens[:, 3:]
    return torch.cat([queries.amax(dim=1), x.amax(dim=1) + x.mean(dim=1)], dim=-1)


def _pick_patches(patches: Tensor, idx: Tensor) -> Tensor:
    """Pick (B, S) of (B, G, K, 3) patches: (B, S, K, 3)."""
    picked = ops.gather_points(patches.flatten(2), idx)
    return picked.view(*idx.shape, *patches.shape[2:])


def _check_sizes(
    embed_dim: int, num_heads: int, decoder_num_heads: int, num_groups: int, num_masked: int
) -> None:
    for name, heads in (("num_heads", num_heads), ("decoder_num_heads", decoder_num_heads)):
        if embed_dim % heads:
            raise ValueError(f"{name}={heads} does not divide embed_dim={embed_dim}")
    if not 0 < num_masked < num_groups:
        raise ValueError(
            f"mask_ratio must hide 1..{num_groups - 1} of num_groups={num_groups} patches, "
            f"found {num_masked}"
        )
