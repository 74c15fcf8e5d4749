"""Losses of pre-training and their sum."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from recon_ray.losses.chamfer import chamfer as chamfer_distance
from recon_ray.losses.contrast import self_contrast
from recon_ray.losses.distill import smooth_l1_distill
from recon_ray.models.decoder import ReconOutput


def pretrain_losses(
    output: ReconOutput,
    *,
    image_features: Tensor | None = None,
    text_features: Tensor | None = None,
    labels: Tensor | None = None,
    chamfer: Literal["l1", "l2"] = "l2",
) -> dict[str, Tensor]:
    """Compute the losses that apply, and their sum with weight 1 each.

    Args:
        output: Output of the model.
        image_features: (B, d) features of the image teacher, or None without it.
        text_features: (B, d) features of the text teacher, or None without it.
        labels: (B,) classes for self-contrast within these samples, or None without it.
        chamfer: Kind of Chamfer distance.

    Returns:
        ``reconstruction`` and, where they apply, ``image_distill``, ``text_distill`` and
        ``self_contrast``; ``loss`` is their sum. All are () float32.

    Raises:
        ValueError: If features or labels are given that the model has no head for.
    """
    losses = {
        "reconstruction": chamfer_distance(
            output.prediction, output.target, squared=chamfer == "l2"
        )
    }
    if image_features is not None:
        token = _require(output.image, "image features", "image_dim")
        losses["image_distill"] = smooth_l1_distill(token, image_features)
    if text_features is not None:
        token = _require(output.text, "text features", "text_dim")
        losses["text_distill"] = smooth_l1_distill(token, text_features)
    if labels is not None:
        token = _require(output.contrast, "labels", "self_contrast")
        losses["self_contrast"] = self_contrast(token, labels)
    first, *others = losses.values()
    return {**losses, "loss": sum(others, start=first)}


def _require(token: Tensor | None, given: str, argument: str) -> Tensor:
    if token is None:
        raise ValueError(f"{given} were given but the model was built without {argument}")
    return token
