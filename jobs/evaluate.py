"""Accuracy of a classifier, plain and by voting: ``python jobs/evaluate.py init_from=...``."""

import sys

from recon_ray.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job("evaluate"))
