"""The driver of ``jobs/benchmark.py``."""

from __future__ import annotations

from recon_ray.benchmarks.config import BenchmarkConfig
from recon_ray.benchmarks.point_ops import measure_ops
from recon_ray.tasks.config_checks import use_ops
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import start_run

PARTS = ("ops", "step", "training", "ingest")


def benchmark(job: Job[BenchmarkConfig]) -> JobResult:
    """Measure, print a table and write the figures to ``result.json``."""
    config = job.config
    if job.dry_run:
        return JobResult(f"dry run: would measure {config.what}; nothing was run")
    use_ops(config)
    run = start_run("benchmark", config, label=config.what)
    metrics: dict[str, float] = {}
    tables = []
    for part in PARTS if config.what == "all" else (config.what,):
        # Each part brings its own libraries.
        if part == "ops":
            found, table = measure_ops()
            tables.append(table)
        elif part == "step":
            from recon_ray.benchmarks.step import describe_steps, measure_steps

            found = measure_steps(config, run.folder)
            tables.append(describe_steps(found, config.step))
        elif part == "training":
            from recon_ray.benchmarks.training_rate import describe_training, measure_training

            found = measure_training(config, run.folder)
            tables.append(describe_training(found, config.training))
        else:
            from recon_ray.benchmarks.ingest import describe, measure_ingest

            found = measure_ingest(config, run.folder)
            tables.append(describe(found, config.ingest))
        metrics |= found if config.what != "all" else {f"{part}/{k}": v for k, v in found.items()}
    return run.finish(
        metrics,
        table="\n\n".join(tables),
        selection="every part once, in one run; of repeated passes the fastest or the median, as "
        "the table says",
        counts={"samples": config.ingest.samples, "epochs": config.ingest.epochs},
    )
