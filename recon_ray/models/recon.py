"""The ReCon model: masked patch reconstruction with a contrast branch (ReCon paper, section 3).

Three query tokens (class, image, text) read the patches; a stop-gradient keeps their losses from
the patch path in pre-training, and is missing downstream. Neither the projected tokens nor the
teachers' features are normalized. Hidden patches are not encoded, but enter the batch statistics
of the patch embedding. Without self-contrast the class token gets no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from recon_ray.models.cloud import EncoderModel
from recon_ray.models.decoder import ReconDecoder, ReconOutput
from recon_ray.models.heads import ContrastHead
from recon_ray.models.initialization import init_embedder, init_recon
from recon_ray.models.masking import count_masked, hide_patches
from recon_ray.points.random import RandomSource

#: Kinds of zero-shot features.
ZERO_SHOT_FEATURES = ("text", "image", "full")


class _Projecting(EncoderModel):
    """Encoder with projections of its tokens to the teachers' feature spaces."""

    image_proj: nn.Linear | None
    text_proj: nn.Linear | None

    def encode_image(self, points: Tensor, source: RandomSource = None) -> Tensor:
        """Encode (B, N, 3) clouds in the image teacher's space: (B, d), not normalized.

        Raises:
            ValueError: If the model was built without an image teacher.
        """
        return self.project_image(self._encode(points, source)[0])

    def encode_text(self, points: Tensor, source: RandomSource = None) -> Tensor:
        """Encode (B, N, 3) clouds in the text teacher's space: (B, d), not normalized.

        Raises:
            ValueError: If the model was built without a text teacher.
        """
        return self.project_text(self._encode(points, source)[0])

    def project_image(self, tokens: Tensor) -> Tensor:
        """Project the image token of (B, 3 or more, D) features: (B, d).

        Raises:
            ValueError: If the model was built without an image teacher.
        """
        if self.image_proj is None:
            raise ValueError("this model has no image projection; it was built with image_dim=None")
        return self.image_proj(tokens[:, 1])

    def project_text(self, tokens: Tensor) -> Tensor:
        """Project the text token of (B, 3 or more, D) features: (B, d).

        Raises:
            ValueError: If the model was built without a text teacher.
        """
        if self.text_proj is None:
            raise ValueError("this model has no text projection; it was built with text_dim=None")
        return self.text_proj(tokens[:, 2])

    def zeroshot_head(self, tokens: Tensor, *, kind: str = "full", ratio: float = 0.25) -> Tensor:
        """Return the feature for comparison with the classes' texts (reference).

        Args:
            tokens: (B, 3 + G, D) of :meth:`forward_features`.
            kind: ``text`` and ``image`` take one projected token; ``full`` adds ``ratio`` times the
                text token to the image token, where both teachers have one width.
            ratio: Weight of the text token.

        Returns:
            (B, d), not normalized.

        Raises:
            ValueError: If the kind is unknown, or the model lacks a projection.
        """
        if kind not in ZERO_SHOT_FEATURES:
            raise ValueError(f"kind must be one of {', '.join(ZERO_SHOT_FEATURES)}, found {kind!r}")
        if kind == "text":
            return self.project_text(tokens)
        image = self.project_image(tokens)
        if kind == "image":
            return image
        text = self.project_text(tokens)
        if image.shape != text.shape:
            raise ValueError(
                f"the full zero-shot feature needs teachers of one width, found {image.shape[1]} "
                f"(image) and {text.shape[1]} (text); use the feature text"
            )
        return ratio * text + image

    def zeroshot_features(
        self, points: Tensor, *, kind: str = "full", ratio: float = 0.25
    ) -> Tensor:
        """Encode (B, N, 3) clouds and return :meth:`zeroshot_head` of them: (B, d)."""
        return self.zeroshot_head(self.forward_features(points), kind=kind, ratio=ratio)


def _projection(embed_dim: int, width: int | None) -> nn.Linear | None:
    return None if width is None else nn.Linear(embed_dim, width)


class Recon(_Projecting):
    """ReCon for pre-training, with the features of :class:`EncoderModel`.

    Args:
        decoder_depth: Decoder blocks.
        decoder_num_heads: Decoder heads; those of the encoder by default.
        drop_path: Drop rate of the last block of encoder and decoder.
        mask_ratio: Part of the patches that is hidden, rounded down.
        mask_type: "random" or "block".
        image_dim: Width of the image teacher's features, or None without that teacher.
        text_dim: Width of the text teacher's features, or None without that teacher.
        self_contrast: Have the head for the class token's self-contrast.
        others: Sizes, see :class:`~recon_ray.models.cloud.EncoderModel`.

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
        super().__init__(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_groups=num_groups,
            group_size=group_size,
            drop_path=drop_path,
            patch_widths=patch_widths,
            fps_min_sq_norm=fps_min_sq_norm,
        )
        self.num_masked = count_masked(mask_ratio, mask_type, num_groups)
        self.mask_type = mask_type
        self.decoder = ReconDecoder(
            embed_dim=embed_dim,
            depth=decoder_depth,
            num_heads=decoder_num_heads or num_heads,
            group_size=group_size,
            drop_path=drop_path,
        )
        self.image_proj = _projection(embed_dim, image_dim)
        self.text_proj = _projection(embed_dim, text_dim)
        self.contrast_head = ContrastHead(embed_dim) if self_contrast else None
        init_recon(self)

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
        split = hide_patches(
            patches,
            centers,
            mask=mask,
            mask_type=self.mask_type,
            num_masked=self.num_masked,
            source=source,
        )
        encoder_calls = self.encoder.drop_rates.shape[0]
        calls = encoder_calls + self.decoder.drop_rates.shape[0]
        numbers = self._drop_numbers(source, points, calls)
        queries, x = self.encoder(  # (B, 3, D), (B, V, D)
            split.visible,
            split.visible_centers,
            context=split.hidden,
            stop_gradient=True,
            drop_numbers=None if numbers is None else numbers[:, :encoder_calls],
        )
        prediction = self.decoder(  # (B, M, K, 3)
            x,
            split.visible_centers,
            split.hidden_centers,
            None if numbers is None else numbers[:, encoder_calls:],
        )
        return ReconOutput(
            prediction=prediction,
            target=split.hidden,
            image=None if self.image_proj is None else self.image_proj(queries[:, 1]),
            text=None if self.text_proj is None else self.text_proj(queries[:, 2]),
            contrast=None if self.contrast_head is None else self.contrast_head(queries[:, 0]),
            mask=split.mask,
            centers=centers,
        )


class Embedder(_Projecting):
    """Encoder for zero-shot classification and probes, without a decoder.

    Args:
        image_dim: Width of the image teacher's features, or None without that projection.
        text_dim: Width of the text teacher's features, or None without that projection.
        init: ``scratch`` or ``reference``, see :mod:`recon_ray.models.initialization`.
        others: Sizes, see :class:`~recon_ray.models.cloud.EncoderModel`.

    Raises:
        ValueError: If the sizes do not fit each other, or ``init`` is unknown.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_groups: int = 64,
        group_size: int = 32,
        drop_path: float = 0.1,
        image_dim: int | None = None,
        text_dim: int | None = None,
        init: str = "scratch",
        patch_widths: Sequence[int] = (128, 256, 512),
        fps_min_sq_norm: float = -1.0,
    ) -> None:
        super().__init__(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_groups=num_groups,
            group_size=group_size,
            drop_path=drop_path,
            patch_widths=patch_widths,
            fps_min_sq_norm=fps_min_sq_norm,
        )
        self.image_proj = _projection(embed_dim, image_dim)
        self.text_proj = _projection(embed_dim, text_dim)
        init_embedder(self, init)

    def forward(self, points: Tensor) -> Tensor:
        """Return the (B, 2 D) features of the linear probe of (B, N, 3) clouds."""
        return self.svm_features(points)
