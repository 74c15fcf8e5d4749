"""Label the points of shapes: ``python jobs/partseg.py [CONFIG.yaml ...] [key=value ...]``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.tasks.partseg.config import PartsegConfig


def main(job: Job[PartsegConfig]) -> JobResult:
    from recon_ray.tasks.partseg.job import partseg  # torch and Ray load only when needed

    return partseg(job)


if __name__ == "__main__":
    sys.exit(run_job("partseg", PartsegConfig, main))
