"""The driver of ``jobs/benchmark.py``."""

from __future__ import annotations

from recon_ray.cli import Job, JobResult
from recon_ray.config.schema import BenchmarkConfig
from recon_ray.programs.ingest_benchmark import describe, measure_ingest
from recon_ray.programs.run import start_run


def benchmark(job: Job[BenchmarkConfig]) -> JobResult:
    """Measure, print a table and write the figures to ``result.json``."""
    config = job.config
    if job.dry_run:
        return JobResult(f"dry run: would measure {config.what}; nothing was run")
    run = start_run("benchmark", config, label=config.what)
    metrics = measure_ingest(config, run.folder)
    return run.finish(
        metrics,
        table=describe(metrics, config.ingest),
        selection="fastest of the passes, every part once, in one run",
        counts={"samples": config.ingest.samples, "epochs": config.ingest.epochs},
    )
