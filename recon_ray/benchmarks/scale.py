"""Costs that must not grow with the set, the workers or the age of a run, counted on fakes."""

from __future__ import annotations

from recon_ray.benchmarks.config import BenchmarkConfig
from recon_ray.benchmarks.scale_run import (
    caption_costs,
    checkpoint_costs,
    ledger_costs,
    record_costs,
)
from recon_ray.benchmarks.scale_set import Cost, opening_costs, preparing_costs, reader_bytes
from recon_ray.runs.folder import RunFolder

#: Fractions of the size at which the same is measured again.
SMALLER = (0.1, 1.0)


def measure_scale(config: BenchmarkConfig, folder: RunFolder) -> tuple[dict[str, float], str]:
    """Count requests, bytes, CPU seconds and memory of a set's and a run's central work.

    Returns:
        Metrics and a table.
    """
    del folder
    options = config.scale
    metrics: dict[str, float] = {}
    lines = [f"{'':44}{'requests':>9}{'MB read':>9}{'MB sent':>9}{'CPU s':>8}{'memory MB':>11}"]

    def add(name: str, title: str, cost: Cost) -> None:
        metrics.update(cost.metrics(name))
        lines.append(
            f"{title:44}{cost.requests:>9,}{cost.read / 1e6:>9.1f}{cost.written / 1e6:>9.1f}"
            f"{cost.cpu_seconds:>8.2f}{cost.megabytes:>11.0f}"
        )

    for shards in (int(part * options.shards) for part in SMALLER):
        cost = opening_costs(shards, options.latency)
        add(f"open_{shards}", f"open a set of {shards:,} shards", cost)
        metrics[f"reader_{shards}/bytes"] = float(reader_bytes(shards))
    for shards in (int(part * options.prepared_shards) for part in SMALLER):
        add(f"prepare_{shards}", f"prepare {shards:,} shards", preparing_costs(shards))
    lines.append("")
    for captions in (int(part * options.captions) for part in SMALLER):
        milliseconds = caption_costs(captions)["ms_a_batch"]
        metrics[f"captions_{captions}/ms_a_batch"] = milliseconds
        lines.append(f"{f'captions of a batch among {captions:,}':44}{milliseconds:>9.3f} ms")
    for samples in (int(part * options.samples) for part in SMALLER):
        found = ledger_costs(samples)
        metrics |= {f"ledger_{samples}/{name}": value for name, value in found.items()}
        lines.append(
            f"{f'ledger of {samples:,} samples':44}{found['ms_a_batch']:>9.3f} ms a batch, "
            f"{found['stored_bytes'] / 1e6:.1f} MB stored"
        )
    *commits, restart = record_costs(options.commits)
    metrics["records/requests_a_commit"] = float(max(one["requests"] for one in commits[1:]))
    metrics["records/sent_bytes"] = float(sum(one["write"] for one in commits))
    metrics["records/restart_bytes"] = float(restart["read"])
    lines.append(
        f"{f'records of {options.commits} commits':44}"
        f"{metrics['records/requests_a_commit']:>9.0f} requests at most a commit, "
        f"{metrics['records/sent_bytes'] / 1e6:.1f} MB in all, "
        f"{metrics['records/restart_bytes'] / 1e6:.1f} MB at a restart"
    )
    for kept in options.kept_checkpoints:
        for name, one in checkpoint_costs(kept).items():
            metrics[f"checkpoints_{kept}/{name.replace(' ', '_')}_requests"] = float(
                one["requests"]
            )
        lines.append(
            f"{f'beside {kept:,} kept checkpoints':44}"
            f"{metrics[f'checkpoints_{kept}/commit_requests']:>9.0f} requests a commit, "
            f"{metrics[f'checkpoints_{kept}/start_requests']:.0f} a start"
        )
    return metrics, "\n".join(lines)
