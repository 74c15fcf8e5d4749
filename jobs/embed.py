"""Write the features of shapes: ``python jobs/embed.py init_from=... data.path=...``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.tasks.embed.config import EmbedConfig


def main(job: Job[EmbedConfig]) -> JobResult:
    from recon_ray.tasks.embed.job import embed  # torch and Ray load only when needed

    return embed(job)


if __name__ == "__main__":
    sys.exit(run_job("embed", EmbedConfig, main))
