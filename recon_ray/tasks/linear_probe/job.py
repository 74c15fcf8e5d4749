"""Main function of ``jobs/linear_probe.py``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import ConfigError
from recon_ray.tasks.config_checks import (
    check_batch,
    check_classes,
    check_labels,
    check_points,
    find_set,
)
from recon_ray.tasks.driver import run_evaluation
from recon_ray.tasks.feature_extraction import open_embedder
from recon_ray.tasks.linear_probe.config import LinearProbeConfig
from recon_ray.tasks.linear_probe.probes import ProbeEvaluation
from recon_ray.tasks.point_pipeline import evaluated_clouds
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import Run
from recon_ray.tasks.split_checks import HeldOut, compare_splits
from recon_ray.tasks.start_weights import describe_weights
from recon_ray.weights.weight_files import LoadedWeights

#: Probes in the order of the table.
PROBES = {
    "accuracy": "linear SVM",
    "knn_accuracy": "nearest neighbors",
    "logistic_accuracy": "logistic regression",
    "few_label_accuracy": "linear SVM, few labels",
}


def linear_probe(job: Job[LinearProbeConfig]) -> JobResult:
    """Extract features once, fit the probes and write ``result.json``."""
    config, place, weights, _ = open_embedder(job.config)
    prepared = find_set("data.path", config.data.path)
    _check_splits(config, prepared)
    check_points(prepared, config.data.num_points)
    limit = config.data.limit
    choice = evaluated_clouds(config, prepared, weights).probes(
        farthest=config.flags.fps_probe_points, seed=config.run.seed
    )
    measured = HeldOut("probe.test_split", config.probe.test_split, limit)
    shared = compare_splits(prepared, [config.probe.train_split], [measured], limit=limit)
    return run_evaluation(
        replace(job, config=config),
        partial(
            ProbeEvaluation,
            weights=place,
            sizes=weights.sizes,
            batch_size=config.probe.batch_size,
            options=config.probe,
            choice=choice,
            num_classes=len(prepared.classes),
            flags=config.flags,
            seed=config.run.seed,
            limit=limit,
        ),
        prepared,
        (config.probe.train_split, config.probe.test_split),
        fits="weights and set fit, nothing was probed",
        verify=config.data.verify,
        finish=lambda run, found: _finish(run, config, prepared, weights, found, shared),
    )


def _finish(
    run: Run,
    config: LinearProbeConfig,
    prepared: PreparedSet,
    weights: LoadedWeights,
    found: dict[str, Any],
    shared: dict[str, Any],
) -> JobResult:
    metrics: dict[str, float] = found["metrics"]
    return run.finish(
        metrics,
        table=summary(metrics),
        selection="neighbors and regularization are chosen on training shapes; nothing is chosen "
        f"on {config.probe.test_split!r}",
        counts={
            **found["counts"],
            **shared,
            "classes": len(prepared.classes),
            "workers": config.cluster.max_workers,
        },
        prepared=prepared,
        weights=describe_weights(weights),
    )


def _check_splits(config: LinearProbeConfig, prepared: PreparedSet) -> None:
    """Refuse splits that cannot be learned from or tested on."""
    check_classes(prepared)
    splits = {"train_split": config.probe.train_split, "test_split": config.probe.test_split}
    for key, split in splits.items():
        check_labels(prepared, f"probe.{key}", split, len(prepared.classes))
    if len({*splits.values()}) == 1:
        raise ConfigError(
            f"probe.test_split={config.probe.test_split} is probe.train_split; choose a held-out "
            "split"
        )
    rows = prepared.read(config.probe.train_split, columns=["label"])["label"].to_numpy()
    labels = rows[: config.data.limit]
    labels = labels[labels >= 0]
    if len({*labels.tolist()}) < 2:
        raise ConfigError(
            f"probe.train_split={config.probe.train_split}: its {len(labels)} labeled shapes are "
            "of fewer than two classes; raise data.limit or choose another split"
        )
    count = len(labels)
    if config.flags.drops_last_batch:
        count = check_batch(prepared, config.probe.train_split, count)
    if max(config.probe.knn) > count:
        raise ConfigError(
            f"probe.knn: {max(config.probe.knn)} neighbors, but {prepared.path} has {count} "
            f"labeled shapes in {config.probe.train_split!r}; lower it"
        )


def summary(metrics: dict[str, float]) -> str:
    """Return a table of every probe, on these features and on those of the untrained network."""
    lines = [f"{'':28}{'untrained':>12}{'these weights':>16}"]
    for name, title in PROBES.items():
        if name in metrics:
            before = metrics.get(f"{name}_untrained")
            shown = "-" if before is None else f"{before:.1%}"
            lines.append(f"{title:28}{shown:>12}{metrics[name]:>16.1%}")
    lines.append(f"{'chance':28}{metrics['chance']:>28.1%}")
    return "\n".join(lines)
