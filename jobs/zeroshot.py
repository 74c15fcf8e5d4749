"""Classify shapes by the texts of their classes: ``python jobs/zeroshot.py init_from=...``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.tasks.zeroshot.config import ZeroshotConfig


def main(job: Job[ZeroshotConfig]) -> JobResult:
    from recon_ray.tasks.zeroshot.job import zeroshot  # torch and Ray load only when needed

    return zeroshot(job)


if __name__ == "__main__":
    sys.exit(run_job("zeroshot", ZeroshotConfig, main))
