"""Find shapes by texts and pictures: ``python jobs/retrieve.py init_from=... [query=...]``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.tasks.retrieve.config import RetrieveConfig


def main(job: Job[RetrieveConfig]) -> JobResult:
    from recon_ray.tasks.retrieve.job import retrieve  # torch and Ray load only when needed

    return retrieve(job)


if __name__ == "__main__":
    sys.exit(run_job("retrieve", RetrieveConfig, main))
