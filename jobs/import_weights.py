"""Import or export weights: ``python jobs/import_weights.py input=A.pth output=B.safetensors``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.tasks.import_weights.config import ImportWeightsConfig


def main(job: Job[ImportWeightsConfig]) -> JobResult:
    from recon_ray.tasks.import_weights.job import import_weights  # torch loads only when needed

    return import_weights(job)


if __name__ == "__main__":
    sys.exit(run_job("import_weights", ImportWeightsConfig, main))
