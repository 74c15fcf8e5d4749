"""Run many trials of a job: ``python jobs/sweep.py CONFIG.yaml [...] [key=value ...]``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.sweeps.config import SweepConfig


def main(job: Job[SweepConfig]) -> JobResult:
    from recon_ray.sweeps.job import sweep  # torch and Ray load only when needed

    return sweep(job)


if __name__ == "__main__":
    sys.exit(run_job("sweep", SweepConfig, main))
