"""Main function of ``jobs/import_weights.py``."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.models.presets import arguments_of
from recon_ray.tasks.import_weights.config import ImportWeightsConfig
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import start_run
from recon_ray.weights.find import find_weights
from recon_ray.weights.load import LoadReport, compare, construct
from recon_ray.weights.weight_files import LoadedWeights, save_reference, save_weights

logger = logging.getLogger(__name__)


def import_weights(job: Job[ImportWeightsConfig]) -> JobResult:
    """Read weights of any layout, report every key, and write them in another layout."""
    config = job.config
    assert config.input is not None
    assert config.output is not None
    _check_output(config.output)
    weights = find_weights(config.input, **config.model.model_dump())
    weights, report = convert(weights, config.kind)
    if job.dry_run:
        return JobResult(f"{report.table()}\ndry run: nothing is written")
    run = start_run("import_weights", config, label=weights.kind)
    if config.format == "reference":
        save_reference(config.output, weights)
    else:
        save_weights(
            config.output,
            weights.state,
            kind=weights.kind,
            architecture=weights.architecture,
            extra={"source": Path(config.input).name, **weights.extra},
        )
    logger.info("%s model %s, written to %s", weights.kind, weights.architecture, config.output)
    counts = {
        "loaded": len(report.loaded) + len(report.renamed),
        "missing": len(report.missing),
        "unexpected": len(report.unexpected),
        "unknown": len(report.unknown),
        "teachers": len(report.dropped),
    }
    return run.finish(
        {"parameters": float(sum(value.numel() for value in weights.state.values()))},
        table=f"{report.table()}\n{config.output}: {weights.kind}, {_sizes(weights)}",
        selection="all tensors of the kind of model",
        counts=counts,
        kind=weights.kind,
        architecture=weights.architecture,
        output=str(config.output),
    )


def convert(weights: LoadedWeights, kind: str = "auto") -> tuple[LoadedWeights, LoadReport]:
    """Keep the weights of a kind of model, and report every key.

    Args:
        weights: The weights of a file.
        kind: Kind of model, or ``auto`` for that of the weights.

    Raises:
        CheckpointError: If the weights of such a model are not complete.
    """
    target = weights.kind if kind == "auto" else kind
    if target not in (weights.kind, "embedder"):
        raise CheckpointError(
            f"{weights.source}: it holds the weights of a {weights.kind} model, but kind={target} "
            "was asked for; leave kind out, or give the file of such a model"
        )
    if target == "pointmae":  # an encoder, not a whole model
        return weights, _as_it_is(weights)
    with torch.device("meta"):
        model = construct(target, weights)
    report = compare(model, weights, strict=True)
    names = [*report.loaded, *(ours for ours, _ in report.renamed)]
    kept = {name: weights.state[name] for name in names}
    known = arguments_of(target)
    sizes = {name: value for name, value in weights.architecture.items() if name in known}
    return LoadedWeights(target, sizes, kept, weights.source, extra=weights.extra), report


def _as_it_is(weights: LoadedWeights) -> LoadReport:
    renamed = tuple((key, weights.renamed[key]) for key in weights.state if key in weights.renamed)
    loaded = tuple(key for key in weights.state if key not in weights.renamed)
    return LoadReport(
        weights.source, loaded, renamed, unknown=weights.unknown, dropped=weights.dropped
    )


def _sizes(weights: LoadedWeights) -> str:
    return ", ".join(f"{name}={value}" for name, value in weights.architecture.items())


def _check_output(output: Path) -> None:
    if output.is_dir():
        raise ConfigError(f"output={output}: it is a folder; give the name of a file")
