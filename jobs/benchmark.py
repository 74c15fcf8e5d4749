"""Measure this package beside its alternatives: ``python jobs/benchmark.py step``."""

import sys

from recon_ray.cli import Job, JobResult, run_job
from recon_ray.config.schema import BenchmarkConfig


def main(job: Job[BenchmarkConfig]) -> JobResult:
    from recon_ray.programs.benchmark import benchmark

    return benchmark(job)


if __name__ == "__main__":
    sys.exit(run_job("benchmark", BenchmarkConfig, main, word="what"))
