"""Measure this package beside its alternatives: ``python jobs/benchmark.py step``."""

import sys
from typing import get_args

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.config.schema import BenchmarkConfig

PARTS = get_args(BenchmarkConfig.model_fields["what"].annotation)


def main(job: Job[BenchmarkConfig]) -> JobResult:
    from recon_ray.programs.benchmark import benchmark

    return benchmark(job)


if __name__ == "__main__":
    arguments = [f"what={word}" if word in PARTS else word for word in sys.argv[1:]]
    sys.exit(run_job("benchmark", BenchmarkConfig, main, arguments=arguments))
