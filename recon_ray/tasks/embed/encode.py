"""Features of all shapes of a set, or of single files, as Parquet: one shard in, one part out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import fs as pafs
from torch import Tensor, nn

from recon_ray.data.format.files import write_file
from recon_ray.data.loading.prefetch import prefetch
from recon_ray.errors import CheckpointError, DataError
from recon_ray.models.cloud import svm_pool
from recon_ray.models.recon import Embedder
from recon_ray.models.twotower import TwoTowerClassifier
from recon_ray.runs.storage import open_filesystem
from recon_ray.tasks.embed.parts import KEY, EmbedTask, Rows
from recon_ray.tasks.feature_extraction import PointChoice, load_embedder
from recon_ray.train.inference import Function, Inference
from recon_ray.weights.find import find_weights
from recon_ray.weights.load import build

Encoder: TypeAlias = Embedder | TwoTowerClassifier


def model_hash(model: nn.Module) -> str:
    """Name a model by its weights."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def load_encoder(weights: str, sizes: Mapping[str, Any]) -> Encoder:
    """Make what encodes shapes, in evaluation mode, on the CPU.

    Args:
        weights: Run folder, checkpoint or file.
        sizes: Constructor arguments that a foreign file does not tell.

    Raises:
        CheckpointError: If they cannot be read, or are of no model with features.
    """
    found = find_weights(weights, **sizes)
    if found.kind != "twotower_classifier":
        return load_embedder(weights, **sizes)
    model, _ = build(found)
    assert isinstance(model, TwoTowerClassifier)
    return model.eval()


def feature_widths(model: Encoder) -> dict[str, int]:
    """Return the columns of features of a model, and how wide each is."""
    if isinstance(model, TwoTowerClassifier):
        return {"features": (4 if model.stream == "ALL" else 2) * model.embed_dim}
    heads = {"image_embedding": model.image_proj, "text_embedding": model.text_proj}
    projected = {name: head.out_features for name, head in heads.items() if head is not None}
    return {"features": 2 * model.embed_dim, **projected}


class ShardEmbedder:
    """A model on its device, which computes part after part.

    Args:
        weights: Run, checkpoint or file with an encoder.
        sizes: Constructor arguments that a foreign file does not tell.
        expected: Hash of the model.
        device: Where it runs.
        inference: How it runs.
        batch_size: Shapes encoded at once.

    Raises:
        CheckpointError: If the weights cannot be read, or are others than those expected.
    """

    def __init__(
        self,
        weights: str,
        sizes: Mapping[str, Any],
        expected: str,
        *,
        device: torch.device,
        inference: Inference,
        batch_size: int,
    ) -> None:
        model = load_encoder(weights, sizes)
        if model_hash(model) != expected:
            raise CheckpointError(
                f"{weights}: the weights have changed since the job began; run it again, or give "
                "one checkpoint of a run that goes on"
            )
        self._model = inference.place(model, device)
        self._device, self._inference, self._batch_size = device, inference, batch_size
        self._encoders: dict[PointChoice, Function] = {}

    def __call__(self, task: EmbedTask) -> dict[str, Any]:
        """Compute one part and write it.

        Returns:
            Its ``file``, ``split`` and the number of ``shapes``.

        Raises:
            DataError: If a shape cannot be read or is too small, or the part cannot be written.
        """
        encode = self._encoder(task.choice)
        tables = []
        for rows in prefetch(lambda: task.rows.batches(self._batch_size)):
            self._check(rows)
            ids = torch.tensor(rows.columns["sample_id"], device=self._device)
            with torch.inference_mode():
                found = encode(rows.points.to(self._device), ids)
            features = {name: value.cpu().numpy() for name, value in found.items()}
            tables.append(_table(rows.columns, task.split, features))
        table = pa.concat_tables(tables).replace_schema_metadata({KEY: task.key.encode()})
        _write(task, table)
        return {"file": task.file, "split": task.split, "shapes": len(table)}

    def _encoder(self, choice: PointChoice) -> Function:
        if choice not in self._encoders:

            def encode(points: Tensor, ids: Tensor) -> dict[str, Tensor]:
                return features_of(self._model, choice(points, ids))

            self._encoders[choice] = self._inference.prepare(encode, self._device)
        return self._encoders[choice]

    def _check(self, rows: Rows) -> None:
        model = self._model
        if rows.points.shape[1] < max(model.num_groups, model.group_size):
            raise DataError(
                f"{rows.columns['object_id'][0]}: {rows.points.shape[1]} points are too few for "
                f"the model's {model.num_groups} patches of {model.group_size} points; leave it out"
            )


def features_of(model: Encoder, points: Tensor) -> dict[str, Tensor]:
    """Encode (B, N, 3) clouds: the columns of :func:`feature_widths`, (B, width) each.

    They are what the linear probes read; of a two-tower classifier, what its head reads.
    """
    if isinstance(model, TwoTowerClassifier):
        return {"features": model.forward_features(points)}
    tokens = model.forward_features(points)
    found = {"features": svm_pool(tokens)}
    if model.image_proj is not None:
        found["image_embedding"] = model.project_image(tokens)
    if model.text_proj is not None:
        found["text_embedding"] = model.project_text(tokens)
    return found


def _table(
    columns: Mapping[str, list[Any]], split: str, features: Mapping[str, np.ndarray]
) -> pa.Table:
    """Rows with features as lists of one length, which every reader of Parquet knows."""
    count = len(columns["sample_id"])
    arrays = {
        "sample_id": pa.array(columns["sample_id"], pa.int64()),
        "object_id": pa.array(columns["object_id"], pa.string()),
        "label": pa.array(columns["label"], pa.int32()),
        "category": pa.array(columns["category"], pa.string()),
        "split": pa.array([split] * count, pa.string()),
    }
    for name, values in features.items():
        flat = pa.array(values.astype(np.float32).reshape(-1))
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(arrays)


def _write(task: EmbedTask, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    floats = [name for name in table.column_names if pa.types.is_fixed_size_list(table[name].type)]
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=["category", "split"],
        use_byte_stream_split=[f"{name}.list.element" for name in floats],
    )
    content = memoryview(sink.getvalue())
    filesystem, root = open_filesystem(task.folder)
    if isinstance(filesystem, pafs.LocalFileSystem):
        write_file(Path(root) / task.file, content)
        return
    try:  # an object is there when all of it is
        with filesystem.open_output_stream(f"{root}/{task.file}") as output:
            output.write(content)
    except OSError as error:
        raise DataError(
            f"{task.folder}/{task.file}: it could not be written "
            f"({str(error).splitlines()[0]}); choose another run.storage"
        ) from error
