"""Write the features of shapes: ``python jobs/embed.py init_from=... data.path=...``."""

import sys

from recon_ray.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job("embed"))
