"""Measure this package beside its alternatives: ``python jobs/benchmark.py step``."""

import sys

from recon_ray.benchmarks.config import BenchmarkConfig
from recon_ray.cli import Job, JobResult, run_job


def main(job: Job[BenchmarkConfig]) -> JobResult:
    from recon_ray.benchmarks.job import benchmark

    return benchmark(job)


if __name__ == "__main__":
    sys.exit(run_job("benchmark", BenchmarkConfig, main, word="what"))
