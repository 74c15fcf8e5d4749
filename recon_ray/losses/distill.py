"""Distillation of a frozen teacher's features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def smooth_l1_distill(prediction: Tensor, feature: Tensor) -> Tensor:
    """Average the smooth L1 distance (beta 1) over all elements.

    Neither side is normalized (reference behavior).

    Args:
        prediction: (B, d) projected token.
        feature: (B, d) teacher's feature; gets no gradient.

    Returns:
        () float32.

    Raises:
        ValueError: If the shapes differ.
    """
    if prediction.shape != feature.shape:
        raise ValueError(
            f"the student predicts features of shape {tuple(prediction.shape)} but the teacher's "
            f"have shape {tuple(feature.shape)}"
        )
    return F.smooth_l1_loss(prediction.float(), feature.detach().float())
