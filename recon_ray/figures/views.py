"""Reconstruction and attention of single shapes by a trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recon_ray.figures.panels import Points
from recon_ray.figures.token_attention import token_attention
from recon_ray.models.cloud import CloudModel
from recon_ray.models.decoder import ReconOutput
from recon_ray.models.grouping import index_patches
from recon_ray.points import ops
from recon_ray.points.random import RandomSource


class Reconstruction(NamedTuple):
    """A masked reconstruction of a cloud (N, 3). Patches overlap: a point may be in several.

    Attributes:
        visible: (N,) bool, points of the patches that the model saw.
        masked: (N,) bool, points of the hidden patches; some may be visible too.
        prediction: (M K, 3) reconstructed points of the hidden patches.
        loss: Mean squared Chamfer distance of the hidden patches, as in training.
    """

    visible: npt.NDArray[np.bool_]
    masked: npt.NDArray[np.bool_]
    prediction: Points
    loss: float


@dataclass(frozen=True)
class ShapeView:
    """Contents of the pictures of one shape.

    Attributes:
        name: Start of the names of its files.
        title: Heading: the class, and below it the shape.
        points: (N, 3) the model's input.
        reconstruction: None where it is not drawn.
        attention: Name of a query token to (N,) values; 1 is the mean over the patches, NaN are
            points in no patch, which the model does not see.
    """

    name: str
    title: str
    points: Points
    reconstruction: Reconstruction | None = None
    attention: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)


@torch.no_grad()
def reconstruct(model: CloudModel, points: Tensor, source: RandomSource) -> list[Reconstruction]:
    """Hide patches of clouds and reconstruct them with a pre-training model.

    Args:
        model: A model with a decoder, in evaluation mode.
        points: (B, N, 3) clouds, in the unit sphere.
        source: Random numbers of the masks.
    """
    output: ReconOutput = model(points, source=source)
    _, centers, idx = index_patches(
        points, model.num_groups, model.group_size, min_sq_norm=model.fps_min_sq_norm
    )
    batch, num_points, _ = points.shape
    hidden_centers = centers[output.mask].view(batch, -1, 1, 3)
    predictions = (output.prediction.float() + hidden_centers).flatten(1, 2)  # (B, M K, 3)
    results = []
    for i, mask in enumerate(output.mask):
        loss = ops.chamfer_loss(output.prediction[i].float(), output.target[i], norm="l2")
        results.append(
            Reconstruction(
                _members(idx[i][~mask], num_points),
                _members(idx[i][mask], num_points),
                predictions[i].cpu().numpy(),
                float(loss),
            )
        )
    return results


def _members(idx: Tensor, num_points: int) -> npt.NDArray[np.bool_]:
    """Return a mask (N,) bool, true at the indices."""
    members = torch.zeros(num_points, dtype=torch.bool, device=idx.device)
    members[idx.flatten().long()] = True
    return members.cpu().numpy()


@torch.no_grad()
def attend(
    model: CloudModel, points: Tensor, blocks: Sequence[int] = ()
) -> list[dict[str, npt.NDArray[np.float32]]]:
    """Return the attention of the query tokens to the points of clouds, averaged over the heads.

    Args:
        model: Any model.
        points: (B, N, 3) clouds, in the unit sphere.
        blocks: Blocks that are averaged, counted from 1; by default the last third.

    Returns:
        For each cloud the (N,) values of each token, as :class:`ShapeView` has them.
    """
    found = token_attention(model, points)
    depth = found.weights.shape[1]
    chosen = [number - 1 for number in blocks] or list(range(depth - max(depth // 3, 1), depth))
    weights = found.weights[:, chosen].mean(dim=(1, 3)) * model.num_groups  # (B, Q, G)
    values = spread_to_points(weights, found.idx, points.shape[1]).cpu().numpy()
    return [dict(zip(found.tokens, cloud, strict=True)) for cloud in values]


def spread_to_points(weights: Tensor, idx: Tensor, num_points: int) -> Tensor:
    """Average over the patches that each point lies in.

    Args:
        weights: (B, Q, G) values of the patches.
        idx: (B, G, K) indices of the points of each patch.
        num_points: N.

    Returns:
        (B, Q, N) float32; NaN for points in no patch.
    """
    batch, num_queries, _ = weights.shape
    flat = idx.long().flatten(1)[:, None].expand(-1, num_queries, -1)  # (B, Q, G K)
    values = weights.float().repeat_interleave(idx.shape[2], dim=2)
    zeros = torch.zeros(batch, num_queries, num_points, device=weights.device)
    return zeros.scatter_add(2, flat, values) / zeros.scatter_add(2, flat, torch.ones_like(values))
