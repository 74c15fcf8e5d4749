"""Pictures of point clouds and of runs: PNG figures, PLY files, HTML pages."""
