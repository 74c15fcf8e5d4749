"""Convert a data set to Parquet: ``python jobs/prepare.py source=custom input=... output=...``."""

import sys

from recon_ray.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job("prepare"))
