"""Figures of a finished run: loss curves, reconstructions, confusion matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.tensorboard import SummaryWriter

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import CheckpointError
from recon_ray.figures.charts import curve_figure, draw_confusion, draw_per_class
from recon_ray.figures.shapes import attention_scale, clouds_of, sheet_figure
from recon_ray.figures.views import ShapeView, reconstruct
from recon_ray.models.cloud import CloudModel
from recon_ray.points.random import SampleGenerator
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.recorder import read_records
from recon_ray.storage import join
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.visualize.config import ShownDataSection
from recon_ray.tasks.visualize.shape_selection import shapes_of_set
from recon_ray.weights.load import build
from recon_ray.weights.weight_files import from_own

#: Shapes in the picture of reconstructions.
SHOWN = 6
#: TensorBoard's mesh plugin draws points of this size (clouds in the unit sphere).
POINTS = {"material": {"cls": "PointsMaterial", "size": 0.025}}


def draw_pretraining(folder: RunFolder, prepared: PreparedSet, config: PretrainConfig) -> None:
    """Draw ``figures/curves.png`` and ``figures/reconstructions.png`` and TensorBoard meshes.

    Raises:
        CheckpointError: If a file cannot be written.
    """
    with writing_figures(folder):
        _draw_curves(folder)
        found = CheckpointStore(folder.checkpoints).load_latest()
        if found is None:
            return
        model, _ = build(from_own(found.model, found.architecture, source=found.name))
        assert isinstance(model, CloudModel)
        views = _reconstruct_some(model.eval(), prepared, config)
        sheet_figure(views, folder.local / "figures" / "reconstructions.png")
        write_meshes(folder, views, found.step)
        folder.publish()


def draw_classification(folder: RunFolder, matrix: npt.NDArray, classes: Sequence[str]) -> None:
    """Draw ``figures/confusion.png`` and ``figures/per_class.png`` of a (C, C) confusion matrix.

    Raises:
        CheckpointError: If a file cannot be written.
    """
    right, totals = np.diag(matrix), matrix.sum(axis=1)
    accuracy = right.sum() / max(totals.sum(), 1)
    title = f"accuracy {accuracy:.1%} of {int(totals.sum()):,} shapes"
    per_class = np.where(totals > 0, right / np.maximum(totals, 1), np.nan)
    figures = folder.local / "figures"
    with writing_figures(folder):
        draw_confusion(figures / "confusion.png", matrix, classes, title)
        draw_per_class(figures / "per_class.png", classes, per_class.tolist(), title)
        folder.publish()


@contextmanager
def writing_figures(folder: RunFolder) -> Iterator[None]:
    """Translate an OSError of the storage into one sentence.

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


def _reconstruct_some(
    model: CloudModel, prepared: PreparedSet, config: PretrainConfig
) -> list[ShapeView]:
    split = config.eval.split if config.eval.split in prepared.splits else "train"
    data = ShownDataSection(
        split=split, num_points=config.data.num_points, normalize=config.data.normalize
    )
    views = []
    for number, shape in enumerate(shapes_of_set(prepared, data, SHOWN, seed=0), start=1):
        source = SampleGenerator(0, torch.tensor([shape.key]))
        made = reconstruct(model, shape.points[None], source)[0]
        name = f"{number:02d}-{shape.name}"
        views.append(ShapeView(name, shape.title, shape.points.numpy(), made))
    return views


def write_meshes(folder: RunFolder, views: Sequence[ShapeView], step: int = 0) -> None:
    """Write the clouds of shapes for TensorBoard's mesh plugin, as ``<kind>/<name>``.

    All attention has one scale of color.

    Raises:
        OSError: If they cannot be written.
    """
    scale = attention_scale(views)
    with SummaryWriter(str(folder.local / "tensorboard")) as board:
        for view in views:
            for kind, arrays in clouds_of(view, scale).items():
                points, colors = (torch.from_numpy(array)[None] for array in arrays)  # (1, n, 3)
                name = f"{kind}/{view.name}"
                board.add_mesh(name, points, colors, config_dict=POINTS, global_step=step)


def _draw_curves(folder: RunFolder) -> None:
    records = [record for record in read_records(folder) if "train/loss" in record]
    if not records:
        return
    names = [name for name in records[0] if name.startswith("train/loss")]
    series = {
        name.removeprefix("train/"): np.array([record.get(name) for record in records], float)
        for name in names
    }
    steps = [record["step"] for record in records]
    curve_figure(steps, series, folder.local / "figures" / "curves.png", title="loss", log_y=True)
