"""Pictures of a finished pre-training: curves, and reconstructions of held-out shapes."""

from __future__ import annotations

import json
import logging

import numpy as np
import torch
from torch.utils.tensorboard.summary import mesh

from recon_ray.config.schema import PretrainConfig
from recon_ray.data.batches import IndexedTable
from recon_ray.data.prepared import PreparedSet
from recon_ray.errors import CheckpointError
from recon_ray.models.recon import Recon, ReconOutput
from recon_ray.points import transforms
from recon_ray.points.random import SampleGenerator
from recon_ray.train.checkpoint import CheckpointStore
from recon_ray.train.events import EventFile
from recon_ray.train.runtime import RunFolder
from recon_ray.visualize.figures import curve_figure, reconstruction_figure
from recon_ray.visualize.mesh import absolute_patches, point_mesh

logger = logging.getLogger(__name__)

#: Shapes in the picture of reconstructions.
SHOWN = 6


def draw_pretraining(folder: RunFolder, prepared: PreparedSet, config: PretrainConfig) -> None:
    """Draw ``figures/curves.png`` and ``figures/reconstructions.png`` and TensorBoard meshes.

    Raises:
        CheckpointError: If a file cannot be written.
    """
    try:
        _draw(folder, prepared, config)
    except OSError as error:
        raise CheckpointError(
            f"{folder.local / 'figures'}: a figure could not be written "
            f"({error.strerror or error}); free space there, then start the same run again: only "
            "its end is repeated"
        ) from error


def _draw(folder: RunFolder, prepared: PreparedSet, config: PretrainConfig) -> None:
    _draw_curves(folder)
    found = CheckpointStore(folder.checkpoints).load_latest()
    if found is None:
        return
    model = Recon(**found.architecture)
    model.load_state_dict(found.model)
    split = config.eval.split if config.eval.split in prepared.splits else "train"
    points, titles = _some_shapes(prepared, split, config)
    with torch.no_grad():
        output: ReconOutput = model.eval()(points, source=SampleGenerator(0, _ids(points)))
    _draw_reconstructions(folder, points, output, titles)
    _write_meshes(folder, points, output, found.step)
    folder.publish()


def _draw_curves(folder: RunFolder) -> None:
    lines = (folder.local / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "train/loss" in record]
    if not records:
        return
    names = [name for name in records[0] if name.startswith("train/loss")]
    series = {
        name.removeprefix("train/"): [_number(record.get(name)) for record in records]
        for name in names
    }
    steps = [record["step"] for record in records]
    curve_figure(steps, series, folder.local / "figures" / "curves.png", title="loss", log_y=True)


def _some_shapes(
    prepared: PreparedSet, split: str, config: PretrainConfig
) -> tuple[torch.Tensor, list[str]]:
    """Shapes of as many different categories as there are, the same at every call."""
    rows = prepared.read(split, columns=["sample_id", "points", "label", "category"])
    table = IndexedTable([rows.select(["sample_id", "points", "label"])])
    _, first = np.unique(table.label, return_index=True)
    order = np.concatenate([first, np.setdiff1d(np.arange(len(table)), first)])[:SHOWN]
    points = torch.from_numpy(np.asarray(table.take(order)["points"], dtype=np.float32))
    source = SampleGenerator(0, _ids(points))
    points = transforms.random_subset(points, config.data.num_points, source)
    titles = [rows["category"][int(row)].as_py() for row in order]
    return transforms.normalize(points), titles


def _draw_reconstructions(
    folder: RunFolder, points: torch.Tensor, output: ReconOutput, titles: list[str]
) -> None:
    hidden = _masked(output)
    predicted = absolute_patches(output.prediction, _masked_centers(output))
    visible = [
        cloud[_far_from(cloud, patches)] for cloud, patches in zip(points, hidden, strict=True)
    ]
    reconstruction_figure(
        points,
        [cloud.numpy() for cloud in visible],
        hidden,
        predicted,
        folder.local / "figures" / "reconstructions.png",
        titles,
    )


def _write_meshes(folder: RunFolder, points: torch.Tensor, output: ReconOutput, step: int) -> None:
    predicted = absolute_patches(output.prediction, _masked_centers(output))
    clouds = {"input": points, "hidden": _masked(output), "predicted": predicted}
    board = EventFile(folder.local / "tensorboard")
    for name, cloud in clouds.items():
        board.add(mesh(f"reconstruction/{name}", faces=None, **point_mesh(cloud)), step)
    board.close()


def _masked_centers(output: ReconOutput) -> torch.Tensor:
    """(B, M, 3) centers of the hidden patches, in the order of the predictions."""
    batch = len(output.centers)
    return output.centers[output.mask].view(batch, -1, 3)


def _masked(output: ReconOutput) -> torch.Tensor:
    return absolute_patches(output.target, _masked_centers(output))


def _far_from(cloud: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Which points of a cloud (N, 3) are none of the points (P, 3): (N,) bool."""
    return torch.cdist(cloud[None], patches[None])[0].amin(dim=1) > 1e-6


def _ids(points: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(points))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
