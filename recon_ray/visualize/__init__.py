"""Pictures of point clouds and of runs: PNG figures, PLY files and TensorBoard meshes."""

from __future__ import annotations

from recon_ray.visualize.figures import curve_figure, draw_confusion, draw_per_class
from recon_ray.visualize.mesh import absolute_patches, point_mesh
from recon_ray.visualize.ply import write_ply
from recon_ray.visualize.shapes import shape_figure, sheet_figure, write_clouds
from recon_ray.visualize.views import ShapeView, attend, reconstruct

__all__ = [
    "ShapeView",
    "absolute_patches",
    "attend",
    "curve_figure",
    "draw_confusion",
    "draw_per_class",
    "point_mesh",
    "reconstruct",
    "shape_figure",
    "sheet_figure",
    "write_clouds",
    "write_ply",
]
