"""Look a machine or a cluster over: ``python jobs/doctor.py [run.storage=...]``."""

import sys

from recon_ray.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job("doctor"))
