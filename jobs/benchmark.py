"""Measure this package beside its alternatives: ``python jobs/benchmark.py step``."""

import sys

from recon_ray.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job("benchmark"))
