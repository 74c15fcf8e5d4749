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
from recon_ray.weights.architecture import missing_arguments
from recon_ray.weights.find import find_weights
from recon_ray.weights.load import LoadReport, compare, construct
from recon_ray.weights.weight_files import LoadedWeights, save_reference, save_weights

logger = logging.getLogger(__name__)

#: Placeholders for sizes that the file does not record; no shape depends on them.
NO_SHAPE = {
    "num_heads": 1, "num_groups": 64, "group_size": 32, "stream": "MDM", "feature_blocks": (),
}  # fmt: skip


def import_weights(job: Job[ImportWeightsConfig]) -> JobResult:
    """Read weights of any layout, report every key, and write them in another layout."""
    config = job.config
    assert config.input is not None
    assert config.output is not None
    if config.output.is_dir():
        raise ConfigError(f"output={config.output}: it is a folder; give the name of a file")
    weights = find_weights(config.input, **config.model.model_dump())
    logger.info("%s", weights.described())
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
    absent = missing_arguments(weights.kind, weights.architecture)
    if absent:
        logger.warning(
            "%s does not record %s: set %s wherever it is read",
            config.output, " and ".join(absent), " ".join(f"model.{name}=..." for name in absent),
        )  # fmt: skip
    if config.format == "reference":
        sizes_read = " ".join(f"{name}={value}" for name, value in weights.sizes.items())
        logger.info(
            "the original's programs read these from their own configuration: %s", sizes_read
        )
    sizes = ", ".join(f"{name}={value}" for name, value in weights.architecture.items())
    counts = {
        "loaded": len(report.loaded) + len(report.renamed),
        "missing": len(report.missing),
        "unexpected": len(report.unexpected),
        "unknown": len(report.unknown),
        "teachers": len(report.dropped),
    }
    return run.finish(
        {"parameters": float(sum(value.numel() for value in weights.state.values()))},
        table=f"{report.table()}\n{config.output}: {weights.kind}, {sizes}",
        selection="all tensors of the kind of model",
        counts=counts,
        kind=weights.kind,
        architecture=weights.architecture,
        output=str(config.output),
    )


def convert(weights: LoadedWeights, kind: str = "auto") -> tuple[LoadedWeights, LoadReport]:
    """Keep the weights of a kind of model (``auto``: their own), and report every key.

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
    open_sizes = {name: NO_SHAPE[name] for name in missing_arguments(target, weights.architecture)}
    if "feature_blocks" in open_sizes:
        width, dim = (
            weights.state["propagation.fc1.weight"].shape[1],
            weights.architecture["embed_dim"],
        )
        open_sizes["feature_blocks"] = tuple(range((width - 3) // dim))
    with torch.device("meta"):
        model = construct(target, weights, **open_sizes)
    report = compare(model, weights, strict=True)
    names = [*report.loaded, *(ours for ours, _ in report.renamed)]
    kept = {name: weights.state[name] for name in names}
    known = arguments_of(target)
    sizes = {name: value for name, value in weights.architecture.items() if name in known}
    return LoadedWeights(target, sizes, kept, weights.source, extra=weights.extra), report


def _as_it_is(weights: LoadedWeights) -> LoadReport:
    names = weights.renamed
    renamed = tuple((key, names[key]) for key in weights.state if key in names)
    loaded = tuple(key for key in weights.state if key not in names)
    return LoadReport(
        weights.source, loaded, renamed, unknown=weights.unknown, dropped=weights.dropped
    )
