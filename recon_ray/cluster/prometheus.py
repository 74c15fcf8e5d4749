"""Prometheus metrics of a run, which every Ray node exports."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

#: Name in a record to the metric's name, which Ray prefixes with ``ray_``, and description.
GAUGES = {
    "train/loss": ("recon_loss", "Loss, mean of the steps of the last record"),
    "train/lr": ("recon_learning_rate", "Learning rate"),
    "perf/samples_per_second": ("recon_samples_per_second", "Training samples a second"),
    "perf/data_wait_fraction": ("recon_data_wait_fraction", "Part of the time without data"),
    "perf/gpu_memory_bytes": ("recon_gpu_memory_bytes", "Most memory of rank 0's GPU so far"),
}


class RunMetrics:
    """Listener on rank 0 that sets the gauges of a run from its records.

    Args:
        run: Name of the run, the tag of every metric.
        workers: Workers of the run now.
        restarts: How often its workers were started again.
    """

    def __init__(self, run: str, *, workers: int, restarts: int) -> None:
        self._tags = {"run": run}
        self._gauges = {key: self._gauge(*described) for key, described in GAUGES.items()}
        self._step = self._gauge("recon_step", "Optimizer steps done")
        self._gauge("recon_world_size", "Workers").set(workers, self._tags)
        self._gauge("recon_restarts", "How often the workers were started again").set(
            restarts, self._tags
        )

    def __call__(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Set the gauges that a record has values for."""
        self._step.set(step, self._tags)
        for key, gauge in self._gauges.items():
            if key in values:
                gauge.set(values[key], self._tags)

    @staticmethod
    def _gauge(name: str, description: str) -> Gauge:
        return Gauge(name, description, tag_keys=("run",))
