"""Run the frozen teachers once: ``python jobs/cache_teachers.py data.path=...``."""

import sys

from recon_ray.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job("cache_teachers"))
