"""Argument checks: one sentence that names the argument, what was found and what is accepted."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _check_kind(name: str, value: Tensor, dtypes: tuple[torch.dtype, ...], ndim: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, found {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} must be {_names(dtypes)}, found {value.dtype}")
    if value.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} must be on cpu or cuda, found {value.device}")
    if value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, found shape {tuple(value.shape)}")


def check_features(name: str, value: Tensor, ndim: int = 3) -> None:
    """Check a floating point tensor of ``ndim`` dimensions."""
    _check_kind(name, value, FLOATS, ndim)


def check_points(name: str, value: Tensor) -> None:
    """Check (B, N, 3) coordinates with at least one point; on CUDA at most float32."""
    check_features(name, value)
    if value.shape[-1] != 3:
        raise ValueError(f"{name} must have shape (B, N, 3), found {tuple(value.shape)}")
    if value.shape[1] == 0:
        raise ValueError(f"{name} must hold at least one point, found shape {tuple(value.shape)}")
    if value.dtype == torch.float64 and value.device.type == "cuda":
        raise TypeError(f"{name} must be {_names(FLOATS[:3])} on cuda, found {value.dtype}")


def check_together(first: str, a: Tensor, second: str, b: Tensor) -> None:
    """Check that two tensors are on one device and have one batch size."""
    if a.device != b.device:
        raise ValueError(
            f"{first} is on {a.device} but {second} is on {b.device}; move one of them"
        )
    if a.shape[0] != b.shape[0]:
        raise ValueError(
            f"{first} has a batch of {a.shape[0]} but {second} has one of {b.shape[0]}"
        )


def check_count(name: str, value: int, limit_name: str, limit: int) -> None:
    """Check a count in 1..limit."""
    if not 1 <= value <= limit:
        raise ValueError(f"{name} must be in 1..{limit} ({limit_name}), found {value}")


def check_indices(name: str, value: Tensor, ndim: int, limit: int) -> None:
    """Check the kind of an index tensor and, on the CPU, that its values lie in 0..limit - 1."""
    _check_kind(name, value, INTEGERS, ndim)
    # Reading values of a GPU tensor would wait for the device; a traced one has none yet, and the
    # CPU kernel checks again.
    if value.device.type == "cpu" and not torch.compiler.is_compiling() and value.numel():
        low, high = (int(bound) for bound in value.aminmax())
        if low < 0 or high >= limit:
            raise IndexError(f"{name} must lie in 0..{limit - 1}, found {low}..{high}")


def check_index_dtype(value: torch.dtype) -> None:
    """Check the dtype asked of index results."""
    if value not in INTEGERS:
        raise TypeError(f"index_dtype must be {_names(INTEGERS)}, found {value}")
