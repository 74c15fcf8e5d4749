"""Compiled point operations: sampling, neighbors, grouping, interpolation, Chamfer distance.

Every function takes (B, N, 3) coordinates and channels-last features, on the CPU or a CUDA device,
gives ties to the lowest index and the same result in every run.
"""

from __future__ import annotations

from recon_ops._load import OpsError, build_info
from recon_ops.operators import (
    ball_query,
    chamfer_distance,
    chamfer_loss,
    furthest_point_sample,
    gather_points,
    group_knn,
    group_points,
    knn,
    sample_and_group,
    three_interpolate,
    three_nn,
)

__version__ = "0.1.0"

__all__ = [
    "OpsError",
    "__version__",
    "ball_query",
    "build_info",
    "chamfer_distance",
    "chamfer_loss",
    "furthest_point_sample",
    "gather_points",
    "group_knn",
    "group_points",
    "knn",
    "sample_and_group",
    "three_interpolate",
    "three_nn",
]
