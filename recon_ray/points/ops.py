"""Point operations, computed by the fastest backend that is installed.

In order: ``recon_ops`` (the compiled distribution), an installed ``pointnet2_ops`` for the
operations it has, and the plain-torch reference. All return the same results; :func:`set_backend`
forces one. Arguments are checked here, so that backends get valid ones only: every operation
raises TypeError for a wrong dtype, ValueError for a shape, size or device that does not fit, and
IndexError for an index out of range (checked on the CPU only).
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from recon_ray.errors import OpsError
from recon_ray.points import pointnet2, reference

logger = logging.getLogger(__name__)

BackendName = Literal["auto", "compiled", "pointnet2_ops", "reference"]
BUILD_COMMAND = "pip install --no-build-isolation ./ops"

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int32, torch.int64)
_forced: BackendName = "auto"
_found: dict[str, ModuleType | None] = {}


def _import_compiled() -> ModuleType | None:
    """Import the compiled distribution, or None where it is not installed."""
    try:
        import recon_ops
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "recon_ops":
            return None
        raise OpsError(
            f"recon_ops cannot be imported: {error}; rebuild it: {BUILD_COMMAND}"
        ) from error
    module: ModuleType = recon_ops
    return module


def _compiled() -> ModuleType | None:
    """Return the compiled distribution, searched once in a way that torch.compile can trace."""
    if "recon_ops" not in _found:
        _found["recon_ops"] = _import_compiled()
    return _found["recon_ops"]


@cache
def _has_pointnet2() -> bool:
    return find_spec("pointnet2_ops") is not None


def announce() -> None:
    """Log the backend, once per process and backend; the first operation does so too."""
    _announce(backend())


@cache
def _announce(name: str) -> None:
    if name == "reference" and _forced == "auto":
        logger.warning(
            "point operations run in plain torch, which is slow; for the compiled ones: %s",
            BUILD_COMMAND,
        )
    else:
        logger.info("point operations: %s", name)


def set_backend(name: BackendName) -> None:
    """Choose the backend of all point operations of this process.

    Args:
        name: "auto" for the fastest that is installed, or the one to force.

    Raises:
        OpsError: If the name is unknown or the forced backend is not installed.
    """
    global _forced
    if name not in get_args(BackendName):
        raise OpsError(
            f"unknown ops backend {name!r}; use one of {', '.join(get_args(BackendName))}"
        )
    if name == "compiled" and _compiled() is None:
        raise OpsError(
            f"the compiled point operations are not installed; build them: {BUILD_COMMAND}"
        )
    if name == "pointnet2_ops" and not _has_pointnet2():
        raise OpsError("pointnet2_ops is not installed; install it or use the ops backend auto")
    _forced = name


def backend() -> str:
    """Return the name of the backend: "compiled", "pointnet2_ops" or "reference"."""
    if _forced != "auto":
        return _forced
    if _compiled() is not None:
        return "compiled"
    return "pointnet2_ops" if _has_pointnet2() else "reference"


def _implementation() -> ModuleType:
    """Return the module of the operations: the compiled one or the reference."""
    name = backend()
    if not torch.compiler.is_compiling():  # tracing stops at a log call
        _announce(name)
    compiled = _compiled() if name == "compiled" else None
    return reference if compiled is None else compiled


def _check_floats(name: str, value: Tensor, ndim: int = 3) -> None:
    if value.dtype not in _FLOATS:
        raise TypeError(f"{name} must be a floating point tensor, found {value.dtype}")
    if value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, found shape {tuple(value.shape)}")


def _check_points(name: str, value: Tensor) -> None:
    _check_floats(name, value)
    if value.shape[-1] != 3:
        raise ValueError(f"{name} must have shape (B, N, 3), found {tuple(value.shape)}")
    if value.shape[1] == 0:
        raise ValueError(f"{name} must hold at least one point, found shape {tuple(value.shape)}")


def _check_together(first: str, a: Tensor, second: str, b: Tensor) -> None:
    if a.device != b.device:
        raise ValueError(
            f"{first} is on {a.device} but {second} is on {b.device}; move one of them"
        )
    if a.shape[0] != b.shape[0]:
        raise ValueError(
            f"{first} has a batch of {a.shape[0]} but {second} has one of {b.shape[0]}"
        )


def _check_pair(first: str, a: Tensor, second: str, b: Tensor) -> None:
    _check_points(first, a)
    _check_points(second, b)
    _check_together(first, a, second, b)


def _check_count(name: str, value: int, limit_name: str, limit: int) -> None:
    if not 1 <= value <= limit:
        raise ValueError(f"{name} must be in 1..{limit} ({limit_name}), found {value}")


def _check_indices(name: str, value: Tensor, ndim: int, limit: int) -> None:
    if value.dtype not in _INTEGERS:
        raise TypeError(f"{name} must be int32 or int64, found {value.dtype}")
    if value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, found shape {tuple(value.shape)}")
    # Reading values of a GPU tensor would wait for the device, and a traced one has none.
    if value.device.type == "cpu" and not torch.compiler.is_compiling() and value.numel():
        low, high = (int(bound) for bound in value.aminmax())
        if low < 0 or high >= limit:
            raise IndexError(f"{name} must lie in 0..{limit - 1}, found {low}..{high}")


def _check_rows(features: Tensor, idx: Tensor, ndim: int) -> None:
    _check_floats("features", features)
    _check_indices("idx", idx, ndim, features.shape[1])
    _check_together("features", features, "idx", idx)


def furthest_point_sample(
    xyz: Tensor, num_samples: int, *, start: Tensor | None = None, min_sq_norm: float = -1.0
) -> tuple[Tensor, Tensor]:
    """Choose ``num_samples`` points by furthest point sampling.

    See :func:`recon_ray.points.reference.furthest_point_sample` for the rule, the arguments and the
    results.
    """
    _check_points("xyz", xyz)
    _check_count("num_samples", num_samples, "points in xyz", xyz.shape[1])
    if start is not None:
        _check_indices("start", start, 1, xyz.shape[1])
        _check_together("xyz", xyz, "start", start)
    if backend() == "pointnet2_ops":
        idx = pointnet2.furthest_point_sample(
            xyz, num_samples, start=start, min_sq_norm=min_sq_norm
        )
        if idx is not None:
            return idx, reference.gather_points(xyz, idx)
    sample = _implementation().furthest_point_sample
    return sample(xyz, num_samples, start=start, min_sq_norm=min_sq_norm)


def knn(xyz: Tensor, query: Tensor, k: int, *, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """Find the ``k`` nearest of (B, N, 3) points to each (B, S, 3) query.

    See :func:`recon_ray.points.reference.knn`.
    """
    _check_pair("xyz", xyz, "query", query)
    _check_count("k", k, "points in xyz", xyz.shape[1])
    return _implementation().knn(xyz, query, k, sorted=sorted)


def group_knn(
    xyz: Tensor, centers: Tensor, k: int, *, features: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cut patches (B, G, k, 3) of the ``k`` nearest points, relative to their center.

    See :func:`recon_ray.points.reference.group_knn`.
    """
    _check_pair("xyz", xyz, "centers", centers)
    _check_count("k", k, "points in xyz", xyz.shape[1])
    if features is not None:
        _check_floats("features", features)
        _check_together("xyz", xyz, "features", features)
        if features.shape[1] != xyz.shape[1]:
            raise ValueError(
                f"features has {features.shape[1]} rows but xyz has {xyz.shape[1]} points"
            )
    return _implementation().group_knn(xyz, centers, k, features=features)


def ball_query(
    xyz: Tensor, query: Tensor, radius: float, max_neighbors: int, *, nearest: bool = False
) -> tuple[Tensor, Tensor]:
    """Find up to ``max_neighbors`` points closer than ``radius`` to each query.

    See :func:`recon_ray.points.reference.ball_query`.
    """
    _check_pair("xyz", xyz, "query", query)
    if max_neighbors < 1:
        raise ValueError(f"max_neighbors must be at least 1, found {max_neighbors}")
    return _implementation().ball_query(xyz, query, radius, max_neighbors, nearest=nearest)


def gather_points(features: Tensor, idx: Tensor) -> Tensor:
    """Pick rows of (B, N, C) features by (B, S) indices: (B, S, C)."""
    _check_rows(features, idx, 2)
    return _implementation().gather_points(features, idx)


def group_points(features: Tensor, idx: Tensor) -> Tensor:
    """Pick rows of (B, N, C) features by (B, S, K) indices: (B, S, K, C)."""
    _check_rows(features, idx, 3)
    return _implementation().group_points(features, idx)


def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Find the three (B, M, 3) known points nearest to each (B, N, 3) unknown one.

    See :func:`recon_ray.points.reference.three_nn`.
    """
    _check_pair("unknown", unknown, "known", known)
    if backend() == "pointnet2_ops":
        found = pointnet2.three_nn(unknown, known)
        if found is not None:
            return found
    return _implementation().three_nn(unknown, known)


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Blend three rows of (B, M, C) features by (B, N, 3) indices and weights: (B, N, C)."""
    _check_floats("weight", weight)
    _check_rows(features, idx, 3)
    if idx.shape[-1] != 3 or weight.shape != idx.shape:
        raise ValueError(
            f"idx and weight must both have shape (B, N, 3), found {tuple(idx.shape)} and "
            f"{tuple(weight.shape)}"
        )
    return _implementation().three_interpolate(features, idx, weight)


def chamfer_distance(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return squared distances and indices of the nearest points between (B, n, 3) and (B, m, 3).

    See :func:`recon_ray.points.reference.chamfer_distance`.
    """
    _check_pair("a", a, "b", b)
    return _implementation().chamfer_distance(a, b)


def chamfer_loss(pred: Tensor, target: Tensor, *, norm: str = "l2") -> Tensor:
    """Average the symmetric Chamfer distance over a batch of point sets.

    See :func:`recon_ray.points.reference.chamfer_loss`.
    """
    _check_pair("pred", pred, "target", target)
    if norm not in ("l1", "l2"):
        raise ValueError(f"norm must be 'l1' or 'l2', found {norm!r}")
    return _implementation().chamfer_loss(pred, target, norm=norm)
