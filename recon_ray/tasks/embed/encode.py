"""Features of the shapes of one part, computed by a model and written as Parquet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from recon_ray.cluster.worker import use_ops
from recon_ray.data.loading.prefetch import prefetch
from recon_ray.errors import CheckpointError, DataError
from recon_ray.models.cloud import svm_pool
from recon_ray.models.recon import Embedder
from recon_ray.models.twotower import TwoTowerClassifier
from recon_ray.points import ops
from recon_ray.storage import Place, reason_of
from recon_ray.tasks.embed.parts import KEY, EmbedTask
from recon_ray.tasks.feature_extraction import PointChoice, check_cloud, load_embedder
from recon_ray.train.inference import Function, Inference
from recon_ray.weights.find import find_weights
from recon_ray.weights.load import build

Encoder: TypeAlias = Embedder | TwoTowerClassifier


def model_hash(model: nn.Module) -> str:
    """Hash the weights of a model."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def load_encoder(weights: str, sizes: Mapping[str, Any]) -> Encoder:
    """Load the encoder of weights, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: If they cannot be read, or belong to a model without features.
    """
    found = find_weights(weights, **sizes)
    if found.kind != "twotower_classifier":
        return load_embedder(weights, **sizes)
    model, _ = build(found)
    assert isinstance(model, TwoTowerClassifier)
    return model.eval()


def feature_widths(model: Encoder) -> dict[str, int]:
    """Return the names and widths of the columns of features of a model."""
    if isinstance(model, TwoTowerClassifier):
        return {"features": (4 if model.stream == "ALL" else 2) * model.embed_dim}
    heads = {"image_embedding": model.image_proj, "text_embedding": model.text_proj}
    projected = {name: head.out_features for name, head in heads.items() if head is not None}
    return {"features": 2 * model.embed_dim, **projected}


def features_of(model: Encoder, points: Tensor) -> dict[str, Tensor]:
    """Encode (B, N, 3) clouds: the columns of :func:`feature_widths`, (B, width) each.

    ``features`` are the inputs of the linear probes; of a two-tower classifier, those of its head.
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


@dataclass(frozen=True)
class EmbedWorker:
    """A model that encodes parts, before it is loaded.

    Attributes:
        weights: Run, checkpoint or file with an encoder.
        sizes: Constructor arguments that a foreign file does not hold.
        model: Hash of the model.
        inference: Precision and compilation.
        batch_size: Shapes encoded at once.
        threads: Threads of torch.
        ops_backend: Implementation of the point operations, as configured.
        driver_ops: The implementation that the driver uses for that.
    """

    weights: str
    sizes: dict[str, Any]
    model: str
    inference: Inference
    batch_size: int
    threads: int
    ops_backend: ops.BackendName
    driver_ops: str

    def start(self, device: str) -> Callable[[EmbedTask], int]:
        """Load the model on a device; return a function that writes a part and counts its shapes.

        Raises:
            CheckpointError: If the weights cannot be read, or have another hash.
        """
        use_ops(self.ops_backend, self.driver_ops)
        model = load_encoder(self.weights, self.sizes)
        if model_hash(model) != self.model:
            raise CheckpointError(
                f"{self.weights}: the weights have changed since the job began; run it again, or "
                "give one checkpoint of a run that goes on"
            )
        place = torch.device(device)
        model = self.inference.place(model, place)

        @cache
        def encoder(choice: PointChoice) -> Function:
            return self.inference.prepare(lambda p, ids: features_of(model, choice(p, ids)), place)

        def write(task: EmbedTask) -> int:
            tables = []
            for columns, points in prefetch(lambda: task.batches(self.batch_size)):
                check_cloud(columns["object_id"][0], points.shape[1], model)
                ids = torch.tensor(columns["sample_id"], device=place)
                with torch.inference_mode():
                    features = encoder(task.choice)(points.to(place), ids)
                tables.append(_table(columns, task.split, features))
            table = pa.concat_tables(tables).replace_schema_metadata({KEY: task.key.encode()})
            _write(task, table)
            return len(table)

        return write


def _table(
    columns: Mapping[str, list[Any]], split: str, features: Mapping[str, Tensor]
) -> pa.Table:
    """Return rows with features as lists of one length, as every reader of Parquet takes them."""
    count = len(columns["sample_id"])
    arrays = {
        "sample_id": pa.array(columns["sample_id"], pa.int64()),
        "object_id": pa.array(columns["object_id"], pa.string()),
        "label": pa.array(columns["label"], pa.int32()),
        "category": pa.array(columns["category"], pa.string()),
        "split": pa.array([split] * count, pa.string()),
    }
    for name, values in features.items():
        flat = pa.array(values.cpu().numpy().astype(np.float32).reshape(-1))
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
    place = Place(task.root) / task.file
    try:
        place.write_bytes(memoryview(sink.getvalue()))
    except OSError as error:
        raise DataError(
            f"{place}: it could not be written ({reason_of(error)}); choose another run.storage"
        ) from error
