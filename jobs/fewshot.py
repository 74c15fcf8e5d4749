"""Fine-tune on few-shot episodes: ``python jobs/fewshot.py [CONFIG.yaml ...] [key=value ...]``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.sweeps.fewshot.config import FewshotConfig


def main(job: Job[FewshotConfig]) -> JobResult:
    from recon_ray.sweeps.fewshot.job import fewshot  # torch and Ray load only when needed

    return fewshot(job)


if __name__ == "__main__":
    sys.exit(run_job("fewshot", FewshotConfig, main))
