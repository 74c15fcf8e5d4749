"""The driver of ``jobs/benchmark.py``."""

from __future__ import annotations

from recon_ray.benchmarks.config import BenchmarkConfig
from recon_ray.tasks.config_checks import use_ops
from recon_ray.tasks.registry import Job, JobResult, load_object
from recon_ray.tasks.run import start_run

#: Parts and the function of each: configuration and run folder to metrics and a table.
PARTS = {
    "ops": "recon_ray.benchmarks.point_ops:measure_ops",
    "step": "recon_ray.benchmarks.step:measure_steps",
    "training": "recon_ray.benchmarks.training_rate:measure_training",
    "ingest": "recon_ray.benchmarks.ingest:measure_ingest",
    "scale": "recon_ray.benchmarks.scale:measure_scale",
}


def benchmark(job: Job[BenchmarkConfig]) -> JobResult:
    """Measure, print a table and write the numbers to ``result.json``."""
    config = job.config
    if job.dry_run:
        return JobResult(f"dry run: would measure {config.what}; nothing was run")
    use_ops(config)
    run = start_run("benchmark", config, label=config.what)
    metrics: dict[str, float] = {}
    tables = []
    for part in PARTS if config.what == "all" else (config.what,):
        found, table = load_object(PARTS[part])(config, run.folder)  # each has its own libraries
        tables.append(table)
        metrics |= found if config.what != "all" else {f"{part}/{k}": v for k, v in found.items()}
    return run.finish(
        metrics,
        table="\n\n".join(tables),
        selection="every part once, in one run; of repeated passes the fastest or the median, as "
        "stated in the table",
        counts={"samples": config.ingest.samples, "epochs": config.ingest.epochs},
    )
