"""Main function of ``jobs/visualize.py``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from recon_ray.config.fields import with_option
from recon_ray.errors import ConfigError
from recon_ray.figures.shapes import shape_figure, sheet_figure, write_clouds
from recon_ray.figures.token_attention import encoders_with_tokens
from recon_ray.figures.views import ShapeView, attend, reconstruct
from recon_ray.models.cloud import CloudModel
from recon_ray.points.random import SampleGenerator
from recon_ray.runs.folder import RunFolder
from recon_ray.tasks.config_checks import check_here, use_ops
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import start_run
from recon_ray.tasks.run_figures import write_meshes, writing_figures
from recon_ray.tasks.start_weights import describe_weights, open_start
from recon_ray.tasks.visualize.config import VisualizeConfig
from recon_ray.tasks.visualize.shape_selection import ChosenShape, choose_shapes
from recon_ray.weights.load import build
from recon_ray.weights.weight_files import LoadedWeights

logger = logging.getLogger(__name__)

#: Shapes on one sheet; more make further sheets.
SHEET_ROWS = 12


def visualize(job: Job[VisualizeConfig]) -> JobResult:
    """Draw the reconstructions of shapes by a model, and the attention of its tokens.

    Raises:
        ConfigError: If an option does not fit the model or the data.
        CheckpointError: If the weights are not there or do not fit a model, or nothing can be
            written.
        DataError: If the set or a file is damaged.
    """
    config, model, weights = open_model(job.config)
    check_here(config)
    use_ops(config)
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    kinds = choose_kinds(config, model, weights.source)
    shapes = choose_shapes(config)
    _check_points(model, shapes)
    if job.dry_run:
        view = look(model, shapes[0], 1, kinds, config)
        return JobResult(f"{_table([view])}\ndry run: {len(shapes)} shapes, nothing is kept")
    run = start_run("visualize", config, label="-".join(kinds))
    views = [look(model, shape, i, kinds, config) for i, shape in enumerate(shapes, start=1)]
    files = write_pictures(run.folder, views)
    losses = [view.reconstruction.loss for view in views if view.reconstruction is not None]
    return run.finish(
        {"reconstruction_loss": sum(losses) / len(losses)} if losses else {},
        table=_table(views),
        selection="the configured shapes",
        counts={"shapes": len(views), "files": len(files)},
        kinds=list(kinds),
        files=files,
        weights=describe_weights(weights),
    )


def open_model(config: VisualizeConfig) -> tuple[VisualizeConfig, CloudModel, LoadedWeights]:
    """Make the model of ``init_from``, in evaluation mode on its device.

    Returns:
        The configuration with what it takes over from the training, the model, and its weights.

    Raises:
        CheckpointError: If there are no such weights, or they do not fit a model.
    """
    masks = {"mask_ratio": config.visualize.mask_ratio, "mask_type": config.visualize.mask_type}
    config, _, weights = open_start(config, **masks)
    if config.data.normalize is None:
        normalizes = weights.extra.get("normalize") != "none"
        config = with_option(config, "data.normalize", normalizes)
    model, report = build(weights)
    assert isinstance(model, CloudModel)
    logger.info("%s: %s", weights.kind, report.summary())
    on_gpu = config.runtime.device != "cpu" and torch.cuda.is_available()
    return config, model.eval().to("cuda" if on_gpu else "cpu"), weights


def choose_kinds(config: VisualizeConfig, model: CloudModel, source: str) -> tuple[str, ...]:
    """Return the configured kinds of pictures, or else all kinds of the model.

    Raises:
        ConfigError: If the model has no decoder for a configured kind, or no such block.
    """
    wanted = config.visualize.kinds
    has_decoder = hasattr(model, "decoder")
    if not has_decoder and wanted is not None and "reconstruction" in wanted:
        raise ConfigError(
            f"visualize.kinds: the model of {source} has no decoder and reconstructs nothing; give "
            "the weights of a pre-training, or visualize.kinds=[attention]"
        )
    if not has_decoder:
        logger.info("%s has no decoder: only attention is drawn", source)
    depth = max(len(encoder.blocks) for encoder in encoders_with_tokens(model))
    beyond = [number for number in config.visualize.blocks if number > depth]
    if beyond:
        raise ConfigError(
            f"visualize.blocks: the model of {source} has blocks 1 to {depth}, found {beyond[0]}"
        )
    return tuple(
        kind
        for kind in ("reconstruction", "attention")
        if (has_decoder or kind == "attention") and (wanted is None or kind in wanted)
    )


def look(
    model: CloudModel,
    shape: ChosenShape,
    number: int,
    kinds: Sequence[str],
    config: VisualizeConfig,
) -> ShapeView:
    """Run the model, in evaluation mode, on one shape; its number begins the names of its files."""
    points = shape.points[None].to(next(model.parameters()).device)
    source = SampleGenerator(config.run.seed, torch.tensor([shape.key], device=points.device))
    return ShapeView(
        name=f"{number:02d}-{shape.name}",
        title=shape.title,
        points=shape.points.numpy(),
        reconstruction=(
            reconstruct(model, points, source)[0] if "reconstruction" in kinds else None
        ),
        attention=attend(model, points, config.visualize.blocks)[0] if "attention" in kinds else {},
    )


def write_pictures(folder: RunFolder, views: Sequence[ShapeView]) -> list[str]:
    """Write figures, clouds and TensorBoard meshes.

    Returns:
        Names of the files in the run's folder, sheets first.

    Raises:
        CheckpointError: If a file cannot be written.
    """
    figures = folder.local / "figures"
    with writing_figures(folder):
        written = _write_sheets(figures, views)
        written += [shape_figure(view, figures / f"{view.name}.png") for view in views]
        for view in views:
            written += write_clouds(view, figures / "clouds")
        write_meshes(folder, views)
        folder.publish()
    return [path.relative_to(folder.local).as_posix() for path in written]


def _write_sheets(figures: Path, views: Sequence[ShapeView]) -> list[Path]:
    parts = [views[first : first + SHEET_ROWS] for first in range(0, len(views), SHEET_ROWS)]
    names = ["sheet.png", *(f"sheet-{number}.png" for number in range(2, len(parts) + 1))]
    return [sheet_figure(part, figures / name) for part, name in zip(parts, names, strict=True)]


def _check_points(model: CloudModel, shapes: Sequence[ChosenShape]) -> None:
    needed = max(model.num_groups, model.group_size)
    for shape in shapes:
        if len(shape.points) < needed:
            raise ConfigError(
                f"{shape.object_id}: {len(shape.points)} points are too few for the model's "
                f"{model.num_groups} patches of {model.group_size} points; raise data.num_points, "
                "or leave the shape out"
            )


def _table(views: Sequence[ShapeView]) -> str:
    lines = [f"{'shape':40}{'points':>8}{'loss':>10}  most attention of each token (1 is even)"]
    for view in views:
        loss = "-" if view.reconstruction is None else f"{view.reconstruction.loss:.4f}"
        peaks = "  ".join(
            f"{token} {np.nanmax(values):.1f}" for token, values in view.attention.items()
        )
        lines.append(f"{view.name[:39]:40}{len(view.points):>8}{loss:>10}  {peaks}".rstrip())
    return "\n".join(lines)
