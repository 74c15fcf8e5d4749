"""Accuracy of a classifier, plain and by voting: ``python jobs/evaluate.py init_from=...``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.tasks.classify.config import EvaluateConfig


def main(job: Job[EvaluateConfig]) -> JobResult:
    from recon_ray.tasks.classify.evaluate_job import (
        evaluate_classifier,  # torch loads only when needed
    )

    return evaluate_classifier(job)


if __name__ == "__main__":
    sys.exit(run_job("evaluate", EvaluateConfig, main))
