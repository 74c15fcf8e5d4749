"""Probe the features of a model: ``python jobs/linear_probe.py init_from=...``."""

import sys

from recon_ray.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job("linear_probe"))
