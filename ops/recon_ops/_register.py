"""Tell torch what the operators give on fake tensors, how they differentiate and autocast.

Backward formulas call other registered operators, so that they trace. Nothing can be differentiated
twice, and trying to says so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeAlias

import torch
from torch import Tensor

from recon_ops._load import load_library

load_library()
_ops = torch.ops.recon_ops
_Context: TypeAlias = Any  # torch gives its context no public type


def _fake(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register the decorated function as the fake kernel of the operator of its name."""
    return torch.library.register_fake(f"recon_ops::{function.__name__}", function)


def _indices(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.int64)


@_fake
def furthest_point_sample(
    xyz: Tensor, num_samples: int, start: Tensor | None, min_sq_norm: float
) -> tuple[Tensor, Tensor]:
    batch = xyz.shape[0]
    return _indices(xyz, batch, num_samples), xyz.new_empty(batch, num_samples, 3)


@_fake
def knn(xyz: Tensor, query: Tensor, k: int, sorted: bool) -> tuple[Tensor, Tensor]:
    shape = (*query.shape[:2], k)
    return xyz.new_empty(shape), _indices(xyz, *shape)


@_fake
def group_knn(xyz: Tensor, centers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*centers.shape[:2], k)
    return xyz.new_empty(*shape, 3), _indices(xyz, *shape)


@_fake
def ball_query(
    xyz: Tensor, query: Tensor, radius: float, max_neighbors: int, nearest: bool
) -> tuple[Tensor, Tensor]:
    return _indices(xyz, *query.shape[:2], max_neighbors), _indices(xyz, *query.shape[:2])


@_fake
def gather_points(features: Tensor, idx: Tensor) -> Tensor:
    return features.new_empty(*idx.shape, features.shape[2])


@_fake
def gather_points_backward(grad: Tensor, idx: Tensor, num_points: int) -> Tensor:
    return grad.new_empty(grad.shape[0], num_points, grad.shape[2])


@_fake
def group_points(features: Tensor, idx: Tensor) -> Tensor:
    return features.new_empty(*idx.shape, features.shape[2])


@_fake
def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    return unknown.new_empty(unknown.shape), _indices(unknown, *unknown.shape)


@_fake
def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    return features.new_empty(*idx.shape[:2], features.shape[2])


@_fake
def three_interpolate_backward(
    grad: Tensor, features: Tensor, idx: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    return features.new_empty(features.shape), weight.new_empty(weight.shape)


@_fake
def chamfer_distance(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, second = a.shape[:2], b.shape[:2]
    return a.new_empty(first), b.new_empty(second), _indices(a, *first), _indices(b, *second)


@_fake
def chamfer_distance_backward(
    a: Tensor, b: Tensor, grad_ab: Tensor, grad_ba: Tensor, i_ab: Tensor, i_ba: Tensor
) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape), b.new_empty(b.shape)


@_fake
def chamfer_loss_forward(
    pred: Tensor, target: Tensor, squared: bool, with_grad_pred: bool, with_grad_target: bool
) -> tuple[Tensor, Tensor]:
    numbers = (pred.numel() if with_grad_pred else 0) + (target.numel() if with_grad_target else 0)
    return pred.new_empty(()), pred.new_empty((numbers,))


class _Refuse(torch.autograd.Function):
    """Pass a gradient on, and refuse to differentiate it."""

    @staticmethod
    def forward(ctx: _Context, grad: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> Tensor:
        raise RuntimeError("the operators of recon_ops cannot be differentiated twice")


def _once(formula: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Make a backward formula that refuses to be differentiated, instead of giving zeros."""

    @wraps(formula)
    def backward(ctx: _Context, *grads: Tensor | None) -> tuple[Any, ...]:
        with torch.no_grad():
            results = formula(ctx, *grads)
        if not torch.is_grad_enabled():
            return results
        return tuple(
            None if value is None else _Refuse.apply(value.detach().requires_grad_())
            for value in results
        )

    return backward


def _scatter(grad: Tensor, idx: Tensor, num_points: int) -> Tensor:
    """Sum (B, ..., C) gradients into the (B, N, C) rows that they were picked from."""
    grad = grad.reshape(grad.shape[0], idx.numel() // max(idx.shape[0], 1), grad.shape[-1])
    return _ops.gather_points_backward(
        grad.contiguous(), idx.reshape(grad.shape[:2]).contiguous(), num_points
    )


def _needs(ctx: _Context, index: int) -> bool:
    return bool(ctx.needs_input_grad[index])


def _setup_sample(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    idx, _ = output
    ctx.mark_non_differentiable(idx)
    ctx.num_points = inputs[0].shape[1]
    if _needs(ctx, 0):
        ctx.save_for_backward(idx)


@_once
def _sample_backward(ctx: _Context, _idx: None, grad: Tensor) -> tuple[Any, ...]:
    (idx,) = ctx.saved_tensors
    return _scatter(grad, idx, ctx.num_points), None, None, None


def _setup_neighbors(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, idx = output
    ctx.mark_non_differentiable(idx)
    if _needs(ctx, 0) or _needs(ctx, 1):
        ctx.save_for_backward(inputs[0], inputs[1], idx)


def _pull(grad: Tensor, xyz: Tensor, query: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
    """Turn gradients (B, S, K) of half the squared distances into those of points and queries."""
    away = query[:, :, None] - _ops.group_points(xyz, idx)  # (B, S, K, 3)
    # A zero gradient stays zero, also for a neighbor that is not finite.
    pulled = (grad[..., None] * away).masked_fill(grad[..., None] == 0, 0.0)
    return _scatter(-pulled, idx, xyz.shape[1]), pulled.sum(2)


@_once
def _knn_backward(ctx: _Context, grad: Tensor, _idx: None) -> tuple[Any, ...]:
    return (*_pull(2 * grad, *ctx.saved_tensors), None, None)


@_once
def _group_knn_backward(ctx: _Context, grad: Tensor, _idx: None) -> tuple[Any, ...]:
    xyz, _, idx = ctx.saved_tensors
    d_xyz = _scatter(grad, idx, xyz.shape[1]) if _needs(ctx, 0) else None
    return d_xyz, -grad.sum(2) if _needs(ctx, 1) else None, None


def _setup_three_nn(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    dist, idx = output
    ctx.mark_non_differentiable(idx)
    if _needs(ctx, 0) or _needs(ctx, 1):
        ctx.save_for_backward(*inputs, dist, idx)


@_once
def _three_nn_backward(ctx: _Context, grad: Tensor, _idx: None) -> tuple[Any, ...]:
    unknown, known, dist, idx = ctx.saved_tensors
    flat = (dist == 0) | dist.isinf()  # coinciding points, and slots without a point
    slope = (grad / dist.masked_fill(flat, 1.0)).masked_fill(flat, 0.0)
    d_known, d_unknown = _pull(slope, known, unknown, idx)
    return d_unknown, d_known


def _setup_gather(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, idx = inputs
    ctx.num_points = features.shape[1]
    ctx.save_for_backward(idx)


@_once
def _gather_backward(ctx: _Context, grad: Tensor) -> tuple[Any, ...]:
    (idx,) = ctx.saved_tensors
    return _scatter(grad, idx, ctx.num_points), None


def _setup_interpolate(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


@_once
def _interpolate_backward(ctx: _Context, grad: Tensor) -> tuple[Any, ...]:
    features, idx, weight = ctx.saved_tensors
    d_features, d_weight = _ops.three_interpolate_backward(grad.contiguous(), features, idx, weight)
    return d_features, None, d_weight


def _setup_chamfer(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[2], output[3])
    ctx.save_for_backward(*inputs, output[2], output[3])


@_once
def _chamfer_backward(ctx: _Context, grad_ab: Tensor, grad_ba: Tensor, *_: None) -> tuple[Any, ...]:
    a, b, i_ab, i_ba = ctx.saved_tensors
    return _ops.chamfer_distance_backward(
        a, b, grad_ab.contiguous(), grad_ba.contiguous(), i_ab, i_ba
    )


def _setup_loss(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    pred, target, _, with_grad_pred, with_grad_target = inputs
    if (_needs(ctx, 0) and not with_grad_pred) or (_needs(ctx, 1) and not with_grad_target):
        raise RuntimeError("chamfer_loss_forward was not asked for a gradient that is needed")
    ctx.mark_non_differentiable(output[1])
    ctx.shapes = [pred.shape, target.shape]
    ctx.given = [with_grad_pred, with_grad_target]
    ctx.save_for_backward(output[1])


@_once
def _loss_backward(ctx: _Context, grad: Tensor, _grads: None) -> tuple[Any, ...]:
    (grads,) = ctx.saved_tensors
    grads = grad * grads  # of both inputs at once
    sizes = [shape.numel() * given for shape, given in zip(ctx.shapes, ctx.given, strict=True)]
    d_pred, d_target = (
        part.view(shape) if _needs(ctx, index) else None
        for index, (part, shape) in enumerate(zip(grads.split(sizes), ctx.shapes, strict=True))
    )
    return d_pred, d_target, None, None, None


_FORMULAS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "furthest_point_sample": (_sample_backward, _setup_sample),
    "knn": (_knn_backward, _setup_neighbors),
    "group_knn": (_group_knn_backward, _setup_neighbors),
    "three_nn": (_three_nn_backward, _setup_three_nn),
    "gather_points": (_gather_backward, _setup_gather),
    "group_points": (_gather_backward, _setup_gather),
    "three_interpolate": (_interpolate_backward, _setup_interpolate),
    "chamfer_distance": (_chamfer_backward, _setup_chamfer),
    "chamfer_loss_forward": (_loss_backward, _setup_loss),
}
# Coordinates stay in float32 under autocast.
_GEOMETRY = (
    "furthest_point_sample",
    "knn",
    "group_knn",
    "ball_query",
    "three_nn",
    "chamfer_distance",
    "chamfer_loss_forward",
)

for _name, (_backward, _setup) in _FORMULAS.items():
    torch.library.register_autograd(f"recon_ops::{_name}", _backward, setup_context=_setup)
for _name in _GEOMETRY:
    for _device in ("cpu", "cuda"):
        torch.library.register_autocast(f"recon_ops::{_name}", _device, torch.float32)
