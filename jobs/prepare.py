"""Convert a data set to Parquet: ``python jobs/prepare.py source=custom input=... output=...``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.config.schema import PrepareConfig


def main(job: Job[PrepareConfig]) -> JobResult:
    from recon_ray.programs.prepare import prepare  # the readers of meshes load only when needed

    return prepare(job)


if __name__ == "__main__":
    sys.exit(run_job("prepare", PrepareConfig, main))
