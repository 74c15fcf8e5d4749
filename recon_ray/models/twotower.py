"""The two-tower ablation: reconstruction and distillation in separate encoders (paper, ablations).

The towers share nothing, and both have ordinary pre-norm blocks. The reconstructing one reads the
visible patches and has no token in pre-training, one (class) in classification; the distilling one
reads all patches with an image and a text token, without a stop-gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recon_ray.models.classifier import Protocol
from recon_ray.models.cloud import CloudModel
from recon_ray.models.decoder import ReconDecoder, ReconOutput
from recon_ray.models.encoder import PlainEncoder
from recon_ray.models.heads import ClassHead
from recon_ray.models.initialization import init_two_tower, init_two_tower_classifier
from recon_ray.models.masking import count_masked, hide_patches
from recon_ray.points.random import RandomSource

STREAMS = ("ALL", "MDM", "CMC")
"""Towers that the classifier reads: both, the reconstructing one, the distilling one."""


class TwoTower(CloudModel):
    """Two-tower model for pre-training.

    Args:
        depth: Blocks of each tower.
        decoder_depth: Decoder blocks.
        decoder_num_heads: Decoder heads; those of the encoder by default.
        drop_path: Drop rate of the last block of each tower and of the decoder.
        mask_ratio: Part of the patches that is hidden from the reconstructing tower.
        mask_type: "random" or "block".
        image_dim: Width of the image teacher's features.
        text_dim: Width of the text teacher's features.
        patch_widths: Widths of the patch embeddings.
        others: Sizes, see :class:`~recon_ray.models.cloud.CloudModel`.

    Raises:
        ValueError: If the sizes do not fit each other.
    """

    recomputes_embedding = True

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
        image_dim: int = 512,
        text_dim: int = 512,
        patch_widths: Sequence[int] = (128, 256, 512),
        fps_min_sq_norm: float = -1.0,
    ) -> None:
        super().__init__(
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_groups=num_groups,
            group_size=group_size,
            drop_path=drop_path,
            fps_min_sq_norm=fps_min_sq_norm,
        )
        self.num_masked = count_masked(mask_ratio, mask_type, num_groups)
        self.mask_type = mask_type
        sizes: dict[str, Any] = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
        sizes |= {"drop_path": drop_path, "patch_widths": patch_widths}
        self.encoder = PlainEncoder(**sizes)
        self.contrast_encoder = PlainEncoder(("image", "text"), **sizes)
        self.decoder = ReconDecoder(
            embed_dim=embed_dim,
            depth=decoder_depth,
            num_heads=decoder_num_heads or num_heads,
            group_size=group_size,
            drop_path=drop_path,
        )
        self.image_proj = nn.Linear(embed_dim, image_dim)
        self.text_proj = nn.Linear(embed_dim, text_dim)
        init_two_tower(self)

    def forward(
        self, points: Tensor, *, mask: Tensor | None = None, source: RandomSource = None
    ) -> ReconOutput:
        """Reconstruct hidden patches in one tower and imitate the teachers in the other.

        Args:
            points: (B, N, 3) clouds, in the unit sphere.
            mask: (B, G) bool to use in place of a random mask, true where hidden.
            source: Random numbers of the mask and of stochastic depth.

        Returns:
            As :class:`~recon_ray.models.recon.Recon`; ``contrast`` is None.

        Raises:
            ValueError: If a given mask does not fit.
        """
        patches, centers = self._cut(points)
        split = hide_patches(
            patches,
            centers,
            mask=mask,
            mask_type=self.mask_type,
            num_masked=self.num_masked,
            source=source,
        )
        calls = self.encoder.drop_rates.shape[0]
        total = 2 * calls + self.decoder.drop_rates.shape[0]
        numbers = self._drop_numbers(source, points, total)
        rest = [calls, calls, total - 2 * calls]
        first, second, third = [None] * 3 if numbers is None else numbers.split(rest, dim=1)
        _, x = self.encoder(
            split.visible, split.visible_centers, context=split.hidden, drop_numbers=first
        )
        tokens, _ = self.contrast_encoder(patches, centers, drop_numbers=second)
        prediction = self.decoder(x, split.visible_centers, split.hidden_centers, third)
        return ReconOutput(
            prediction=prediction,
            target=split.hidden,
            image=self.image_proj(tokens[:, 0]),
            text=self.text_proj(tokens[:, 1]),
            contrast=None,
            mask=split.mask,
            centers=centers,
        )


class TwoTowerClassifier(Protocol):
    """Classifier of clouds by one or both pre-trained towers.

    The state dict has both towers whatever the stream; an unused one is neither run nor trained.

    Args:
        num_classes: Number of classes.
        stream: Entry of :data:`STREAMS`.
        depth: Blocks of each tower.
        drop_path: Drop rate of the last block of each tower.
        head: ``linear``, or ``mlp`` for three layers.
        dropout: Dropout in the latter.
        drop_first_patches: Leave the first two patches out of the maximum, as the published code
            does: it counts three tokens where there is one.
        init: ``scratch`` or ``reference``, see :mod:`recon_ray.models.initialization`.
        patch_widths: Widths of the patch embeddings.
        others: Sizes, see :class:`~recon_ray.models.cloud.CloudModel`.

    Raises:
        ValueError: If the sizes do not fit each other, or a name is unknown.
    """

    recomputes_embedding = True

    def __init__(
        self,
        *,
        num_classes: int,
        stream: str = "ALL",
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_groups: int = 64,
        group_size: int = 32,
        drop_path: float = 0.1,
        head: str = "mlp",
        dropout: float = 0.5,
        drop_first_patches: bool = False,
        init: str = "scratch",
        patch_widths: Sequence[int] = (128, 256, 512),
        fps_min_sq_norm: float = -1.0,
    ) -> None:
        if stream not in STREAMS:
            raise ValueError(f"stream must be one of {', '.join(STREAMS)}, found {stream!r}")
        super().__init__(
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_groups=num_groups,
            group_size=group_size,
            drop_path=drop_path,
            fps_min_sq_norm=fps_min_sq_norm,
        )
        self.num_classes, self.stream = num_classes, stream
        self._first_patch = 2 if drop_first_patches else 0
        sizes: dict[str, Any] = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
        sizes |= {"drop_path": drop_path, "patch_widths": patch_widths}
        self.encoder = PlainEncoder(("class",), **sizes)
        self.contrast_encoder = PlainEncoder(("image", "text"), **sizes)
        width = (4 if stream == "ALL" else 2) * embed_dim
        self.head = ClassHead(width, num_classes, head, dropout=dropout)
        init_two_tower_classifier(self, init)
        self.set_protocol("full")

    def _is_trained(self, name: str) -> bool:
        unused = {"MDM": "contrast_encoder.", "CMC": "encoder."}.get(self.stream)
        return not (unused and name.startswith(unused)) and super()._is_trained(name)

    def forward_features(self, points: Tensor, source: RandomSource = None) -> Tensor:
        """Encode (B, N, 3) clouds: (B, 4 D), or (B, 2 D) where one tower is read.

        These are class token and maximum over the patches of the reconstructing tower, and image
        and text tokens of the distilling one.
        """
        patches, centers = self._cut(points)
        calls = self.encoder.drop_rates.shape[0]
        is_probe = self.protocol == "probe"
        numbers = None if is_probe else self._drop_numbers(source, points, 2 * calls)
        first, second = (None, None) if numbers is None else numbers.split(calls, dim=1)
        features = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not is_probe):
            if self.stream != "CMC":
                token, x = self.encoder(patches, centers, drop_numbers=first)
                features += [token[:, 0], x[:, self._first_patch :].amax(dim=1)]
            if self.stream != "MDM":
                tokens, _ = self.contrast_encoder(patches, centers, drop_numbers=second)
                features.append(tokens.flatten(1))
        return torch.cat(features, dim=-1)

    def forward_head(self, features: Tensor, source: RandomSource = None) -> Tensor:
        """Return logits (B, classes) of the result of :meth:`forward_features`."""
        return self.head(features, source)

    def forward(self, points: Tensor, source: RandomSource = None) -> Tensor:
        """Return logits (B, classes) of (B, N, 3) clouds.

        Stochastic depth and dropout draw from ``source``.
        """
        return self.forward_head(self.forward_features(points, source), source)
