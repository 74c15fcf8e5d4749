"""Run the frozen teachers once: ``python jobs/cache_teachers.py data.path=...``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.tasks.cache_teachers.config import CacheTeachersConfig


def main(job: Job[CacheTeachersConfig]) -> JobResult:
    from recon_ray.tasks.cache_teachers.job import cache_teachers  # torch and Ray only when needed

    return cache_teachers(job)


if __name__ == "__main__":
    sys.exit(run_job("cache_teachers", CacheTeachersConfig, main))
