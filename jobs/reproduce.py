"""Run the paper's whole table: ``python jobs/reproduce.py [CONFIG.yaml ...] [key=value ...]``."""

import sys
from pathlib import Path

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.reproduce.config import ReproduceConfig

DEFAULT = Path(__file__).resolve().parents[1] / "configs" / "reproduce" / "paper.yaml"


def main(job: Job[ReproduceConfig]) -> JobResult:
    from recon_ray.reproduce.job import reproduce  # torch and Ray load only when needed

    return reproduce(job)


if __name__ == "__main__":
    sys.exit(run_job("reproduce", ReproduceConfig, main, default=DEFAULT))
