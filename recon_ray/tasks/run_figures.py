"""Pictures that a finished run leaves: curves, reconstructions, confusion between classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.tensorboard.summary import mesh

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import CheckpointError
from recon_ray.figures.charts import curve_figure, draw_confusion, draw_per_class
from recon_ray.figures.mesh import point_mesh
from recon_ray.figures.ply import Array, to_numpy
from recon_ray.figures.shapes import clouds_of, sheet_figure
from recon_ray.figures.views import ShapeView, reconstruct
from recon_ray.models.cloud import CloudModel
from recon_ray.points.random import SampleGenerator
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.recorder import read_records
from recon_ray.runs.storage import join
from recon_ray.runs.tensorboard import EventFile
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.visualize.config import ShownDataSection
from recon_ray.tasks.visualize.shape_selection import ChosenShape, shapes_of_set
from recon_ray.weights.load import build
from recon_ray.weights.weight_files import from_own

#: Shapes in the picture of reconstructions.
SHOWN = 6


def draw_pretraining(folder: RunFolder, prepared: PreparedSet, config: PretrainConfig) -> None:
    """Draw ``figures/curves.png`` and ``figures/reconstructions.png`` and TensorBoard meshes.

    Raises:
        CheckpointError: If a file cannot be written.
    """
    with writing_figures(folder):
        _draw(folder, prepared, config)


def draw_classification(folder: RunFolder, matrix: Array, classes: Sequence[str]) -> None:
    """Draw ``figures/confusion.png`` and ``figures/per_class.png``.

    Args:
        folder: Folder of the run.
        matrix: (C, C) counts; rows are the true classes, columns the predicted ones.
        classes: C names.

    Raises:
        CheckpointError: If a file cannot be written.
    """
    counts = to_numpy(matrix)
    right, totals = np.diag(counts), counts.sum(axis=1)
    accuracy = right.sum() / max(totals.sum(), 1)
    title = f"accuracy {accuracy:.1%} of {int(totals.sum()):,} shapes"
    per_class = np.where(totals > 0, right / np.maximum(totals, 1), np.nan)
    figures = folder.local / "figures"
    with writing_figures(folder):
        draw_confusion(figures / "confusion.png", counts, classes, title)
        draw_per_class(figures / "per_class.png", classes, per_class.tolist(), title)
        folder.publish()


@contextmanager
def writing_figures(folder: RunFolder) -> Iterator[None]:
    """Turn what the storage refuses into one sentence.

    Raises:
        CheckpointError: If a figure cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{join(folder.uri, 'figures')}: a figure could not be written "
            f"({error.strerror or error}); free space there, then start the same run again"
        ) from error


def _draw(folder: RunFolder, prepared: PreparedSet, config: PretrainConfig) -> None:
    _draw_curves(folder)
    found = CheckpointStore(folder.checkpoints).load_latest()
    if found is None:
        return
    model, _ = build(from_own(found.model, found.architecture, source=found.name))
    assert isinstance(model, CloudModel)
    split = config.eval.split if config.eval.split in prepared.splits else "train"
    data = ShownDataSection(
        split=split, num_points=config.data.num_points, normalize=config.data.normalize
    )
    views = [
        _reconstructed(model.eval(), shape, number)
        for number, shape in enumerate(shapes_of_set(prepared, data, SHOWN, seed=0), start=1)
    ]
    sheet_figure(views, folder.local / "figures" / "reconstructions.png")
    write_meshes(folder, views, found.step)
    folder.publish()


def _reconstructed(model: CloudModel, shape: ChosenShape, number: int) -> ShapeView:
    made = reconstruct(model, shape.points[None], SampleGenerator(0, torch.tensor([shape.key])))[0]
    return ShapeView(f"{number:02d}-{shape.name}", shape.title, shape.points.numpy(), made)


def write_meshes(folder: RunFolder, views: Sequence[ShapeView], step: int = 0) -> None:
    """Write the clouds of shapes for TensorBoard's mesh plugin, as ``<kind>/<name>``.

    Raises:
        OSError: If they cannot be written.
    """
    board = EventFile(folder.local / "tensorboard")
    for view in views:
        for kind, (points, colors) in clouds_of(view).items():
            cloud = point_mesh(torch.from_numpy(points), torch.from_numpy(colors))
            board.add(mesh(f"{kind}/{view.name}", faces=None, **cloud), step)
    board.close()


def _draw_curves(folder: RunFolder) -> None:
    records = [record for record in read_records(folder) if "train/loss" in record]
    if not records:
        return
    names = [name for name in records[0] if name.startswith("train/loss")]
    series = {
        name.removeprefix("train/"): [_number(record.get(name)) for record in records]
        for name in names
    }
    steps = [record["step"] for record in records]
    curve_figure(steps, series, folder.local / "figures" / "curves.png", title="loss", log_y=True)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
