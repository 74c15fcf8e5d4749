"""Classify shapes by the texts of their classes: ``python jobs/zeroshot.py init_from=...``."""

import sys

from recon_ray.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job("zeroshot"))
