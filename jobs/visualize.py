"""Draw what a model does with shapes: ``python jobs/visualize.py init_from=... data.path=...``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.tasks.visualize.config import VisualizeConfig


def main(job: Job[VisualizeConfig]) -> JobResult:
    from recon_ray.tasks.visualize.job import visualize  # torch loads only when needed

    return visualize(job)


if __name__ == "__main__":
    sys.exit(run_job("visualize", VisualizeConfig, main))
