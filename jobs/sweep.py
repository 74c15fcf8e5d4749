"""Run many trials of a job: ``python jobs/sweep.py CONFIG.yaml [...] [key=value ...]``."""

import sys

from recon_ray.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job("sweep"))
