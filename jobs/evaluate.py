"""Accuracy of a classifier, plain and by voting: ``python jobs/evaluate.py init_from=...``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.config.schema import EvaluateConfig


def main(job: Job[EvaluateConfig]) -> JobResult:
    from recon_ray.programs.evaluate import evaluate_classifier  # torch loads only when needed

    return evaluate_classifier(job)


if __name__ == "__main__":
    sys.exit(run_job("evaluate", EvaluateConfig, main))
