"""Probe the features of a model: ``python jobs/linear_probe.py init_from=...``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.tasks.linear_probe.config import LinearProbeConfig


def main(job: Job[LinearProbeConfig]) -> JobResult:
    from recon_ray.tasks.linear_probe.job import linear_probe  # torch and Ray load only when needed

    return linear_probe(job)


if __name__ == "__main__":
    sys.exit(run_job("linear_probe", LinearProbeConfig, main))
