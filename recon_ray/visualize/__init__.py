"""Pictures of point clouds and of runs: PNG figures, PLY files and TensorBoard meshes."""

from __future__ import annotations

from recon_ray.visualize.figures import curve_figure, reconstruction_figure
from recon_ray.visualize.mesh import absolute_patches, point_mesh
from recon_ray.visualize.ply import write_ply

__all__ = [
    "absolute_patches",
    "curve_figure",
    "point_mesh",
    "reconstruction_figure",
    "write_ply",
]
