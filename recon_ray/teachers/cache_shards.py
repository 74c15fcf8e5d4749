"""Fill a teacher cache: one shard of pictures in, one shard of features out.

A shard is a pure function of its task and the teacher: the batches of the forward pass depend on
nothing else, so that neither the number of workers nor an interruption changes a byte (another
device or library may change the last digit). Shards are written whole, then recorded, and the
manifest comes last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from recon_ray.data.format.files import read_json, remove_temporaries, write_json, write_table
from recon_ray.data.format.prepared import PreparedSet, Split
from recon_ray.data.format.schema import MANIFEST, tensor_column
from recon_ray.data.format.stored_features import digest
from recon_ray.data.loading.images import ImageTransform, load_images
from recon_ray.data.loading.prefetch import prefetch
from recon_ray.data.prepare.runners import ShardProgress
from recon_ray.errors import DataError
from recon_ray.teachers.cache import CACHE_VERSION, CACHES, TEXT_BANK, Identity, cache_key
from recon_ray.teachers.prompts import prompts
from recon_ray.teachers.protocol import ImageTeacher

logger = logging.getLogger(__name__)

RECORDS = "_records"

Record = dict[str, Any]


@dataclass(frozen=True)
class EncodeTask:
    """All that encoding one shard needs besides the teacher; picklable.

    Attributes:
        root: Folder of the cache.
        file: The shard below it, ``<split>/part-....parquet``.
        key: Hash of the identity and the pictures; a record with another key is not this shard's.
        views: File of the pictures.
        rows: Samples in it.
        copies: K, features of a sample: augmented copies, or its views without augmentation.
        transform: What is done to a picture.
        seed: Seed of the augmentation.
        batch_size: Pictures of a forward pass.
    """

    root: str
    file: str
    key: str
    views: str
    rows: int
    copies: int
    transform: ImageTransform
    seed: int
    batch_size: int

    @property
    def images(self) -> int:
        """Pictures that the teacher sees."""
        return self.rows * self.copies


@dataclass(frozen=True)
class CachePlan:
    """The shards of a cache.

    Attributes:
        root: Folder of the cache.
        identity: What it is a cache of.
        tasks: Split name to the shards in the set's order.
    """

    root: Path
    identity: Identity
    tasks: dict[str, list[EncodeTask]]

    @property
    def all_tasks(self) -> list[EncodeTask]:
        """The shards of all splits."""
        return [task for tasks in self.tasks.values() for task in tasks]

    def unfinished(self) -> list[EncodeTask]:
        """Shards that have to be encoded still."""
        return [task for task in self.all_tasks if finished_record(task) is None]


def make_cache_plan(
    prepared: PreparedSet, identity: Identity, splits: Sequence[str], transform: ImageTransform
) -> CachePlan:
    """Assign the shards of a set to those of its cache.

    Args:
        prepared: The set.
        identity: What is cached, with ``choices``.
        splits: Names of the splits; those that an earlier job has cached stay.
        transform: What is done to a picture.
    """
    root = prepared.path / CACHES / cache_key(identity)
    before = read_json(root / MANIFEST)
    known = before.get("splits", {}) if isinstance(before, dict) else {}
    names = [name for name in prepared.splits if name in {*splits, *known}]
    tasks = {name: _split_tasks(root, identity, prepared.splits[name], transform) for name in names}
    return CachePlan(root, identity, tasks)


def _split_tasks(
    root: Path, identity: Identity, split: Split, transform: ImageTransform
) -> list[EncodeTask]:
    choices = identity["choices"]
    return [
        EncodeTask(
            root=str(root),
            file=f"{split.name}/{path.name}",
            key=digest([identity, split.name, path.name]),
            views=str(path),
            rows=rows,
            copies=choices["copies"],
            transform=transform,
            seed=choices["seed"],
            batch_size=choices["batch_size"],
        )
        for path, rows in zip(split.views, split.shard_rows, strict=True)
    ]


def views_per_sample(split: Split) -> int:
    """Return how many pictures a sample of a split has, from the footers of its files."""
    for path in split.views:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows:
                group = file.metadata.row_group(0)
                column = group.num_columns - 1  # the pictures come last
                return -(-group.column(column).num_values // group.num_rows)
    return 1


def build_cache(
    plan: CachePlan, run: Callable[[Sequence[EncodeTask]], Iterable[Record]], *, dim: int
) -> dict[str, Any]:
    """Build, or finish, the image features of a plan.

    Args:
        plan: What is to be there.
        run: Encodes shards and yields their records in any order.
        dim: Width of the features.

    Returns:
        The manifest.

    Raises:
        DataError: If a picture does not decode, or a file cannot be written.
    """
    todo = plan.unfinished()
    total = len(plan.all_tasks)
    logger.info(
        "teacher cache %s: %d shards, %d of them already encoded",
        plan.root,
        total,
        total - len(todo),
    )
    if todo:
        (plan.root / MANIFEST).unlink(missing_ok=True)  # an incomplete cache must not look complete
    images = sum(task.images for task in todo)
    progress = ShardProgress("cache_teachers", shards=len(todo), units=images, unit="images")
    try:
        for record in run(todo) if todo else ():
            progress.add(record["images"])
    finally:
        remove_temporaries(plan.root, (RECORDS, *plan.tasks))
    copies = plan.identity["choices"]["copies"]
    splits = {name: _split_record(tasks) for name, tasks in plan.tasks.items()}
    return _write_manifest(plan.root, plan.identity, shape=[copies, dim], splits=splits)


def encode_shard(task: EncodeTask, teacher: ImageTeacher, *, threads: int = 1) -> Record:
    """Encode one shard, write its file and its record.

    Args:
        task: What to encode.
        teacher: On the device that it is to run on.
        threads: Threads that decode; the result does not depend on them.

    Returns:
        The record.

    Raises:
        DataError: If a picture does not decode or its features do not fit float16; the message
            names sample and shard.
    """
    table = pq.read_table(task.views, columns=["sample_id", "views"])
    ids, views = table["sample_id"].to_pylist(), table["views"].to_pylist()
    features = np.zeros((task.rows, task.copies, teacher.dim), np.float16)

    def images() -> Iterator[tuple[int, int, Tensor]]:
        for copy in range(task.copies):
            for start in range(0, task.rows, task.batch_size):
                rows = slice(start, start + task.batch_size)
                yield copy, start, _load(task, views[rows], ids[rows], copy, threads)

    try:
        for copy, start, batch in prefetch(images):
            encoded = teacher.encode(batch).cpu().numpy()
            _check_range(encoded, ids[start : start + len(batch)])
            features[start : start + len(batch), copy] = encoded
    except DataError as error:
        raise DataError(f"{task.views}: {error}") from error
    stored = pa.table(
        {"sample_id": pa.array(ids, pa.int64()), "image_features": tensor_column(features)}
    )
    written = write_table(Path(task.root), task.file, stored)
    record = {"key": task.key, "rows": task.rows, "images": task.images, **written}
    write_json(_record_path(task), record)
    return record


def encode_batch(task: EncodeTask, teacher: ImageTeacher) -> np.ndarray:
    """Encode the first batch of a shard: (B, D) float32, B at most the batch size."""
    table = pq.read_table(task.views, columns=["sample_id", "views"]).slice(0, task.batch_size)
    ids, views = table["sample_id"].to_pylist(), table["views"].to_pylist()
    return teacher.encode(_load(task, views, ids, 0, 1)).cpu().numpy()


def _load(
    task: EncodeTask, views: list[list[bytes]], ids: list[int], copy: int, threads: int
) -> Tensor:
    if task.transform.kind == "none":
        wrong = [i for i, row in enumerate(views) if len(row) != task.copies]
        if wrong:
            raise DataError(
                f"Sample {ids[wrong[0]]} has {len(views[wrong[0]])} views, others have "
                f"{task.copies}; cache with teacher.image.augment=reference, which takes any number"
            )
        views = [[row[copy]] for row in views]
    return load_images(
        views, ids, epoch=copy, seed=task.seed, transform=task.transform, num_threads=threads
    )


def _check_range(features: np.ndarray, ids: Sequence[int]) -> None:
    bad = np.flatnonzero(~(np.abs(features) <= np.finfo(np.float16).max).all(axis=1))
    if len(bad):
        raise DataError(
            f"Sample {ids[int(bad[0])]}: its features are not finite or beyond the range of "
            "float16; train with teacher.image.mode=online"
        )


def build_bank(
    root: Path, identity: Identity, texts: Sequence[str], bank: Tensor
) -> dict[str, Any]:
    """Write a text bank.

    Args:
        root: Folder of the cache.
        identity: What it is a cache of.
        texts: C texts.
        bank: (C, P, D) their features in P prompts, or as they are (P = 1).

    Returns:
        The manifest.
    """
    count, per_text, dim = bank.shape
    sentences = [s for text in texts for s in (prompts(text) if per_text > 1 else [text])]
    table = pa.table(
        {
            "text": pa.array([text for text in texts for _ in range(per_text)], pa.string()),
            "prompt": pa.array(sentences, pa.string()),
            "feature": tensor_column(bank.reshape(-1, dim).to(torch.float32).numpy()),
        }
    )
    written = write_table(root, TEXT_BANK, table)
    return _write_manifest(root, identity, shape=[count, per_text, dim], bank=written)


def finished_record(task: EncodeTask) -> Record | None:
    """Return the record of a shard that is already there, None if it has to be encoded."""
    record = read_json(_record_path(task))
    if not isinstance(record, dict) or record.get("key") != task.key:
        return None
    path = Path(task.root) / task.file
    return record if path.is_file() and path.stat().st_size == record["bytes"] else None


def _record_path(task: EncodeTask) -> Path:
    return Path(task.root) / RECORDS / Path(task.file).with_suffix(".json")


def _split_record(tasks: Sequence[EncodeTask]) -> dict[str, Any]:
    shards = []
    for task in tasks:
        record = finished_record(task)
        if record is None:
            raise DataError(f"{task.root}/{task.file}: was removed while the job ran; run it again")
        shards.append({name: record[name] for name in ("file", "bytes", "sha256", "rows")})
    return {"rows": sum(shard["rows"] for shard in shards), "shards": shards}


def _write_manifest(root: Path, identity: Identity, **content: Any) -> dict[str, Any]:  # noqa: ANN401
    manifest = {"version": CACHE_VERSION, "identity": dict(identity), **content}
    write_json(root / MANIFEST, manifest)
    return manifest
