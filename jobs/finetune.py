"""Fine-tune a classifier: ``python jobs/finetune.py [CONFIG.yaml ...] [key=value ...]``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.tasks.classify.config import FinetuneConfig


def main(job: Job[FinetuneConfig]) -> JobResult:
    from recon_ray.tasks.classify.finetune_job import (
        finetune,  # torch and Ray load only when needed
    )

    return finetune(job)


if __name__ == "__main__":
    sys.exit(run_job("finetune", FinetuneConfig, main))
