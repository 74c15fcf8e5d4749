"""The shards of a teacher cache: pictures or texts in, features out.

The batches of a forward pass depend on the task alone, so that every worker writes the same bytes
(another device or library may change the last digit). The manifest of a cache is written last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from recon_ray.cluster.encode_pool import EncodePool, ShardWorker
from recon_ray.data.format.files import read_json, read_table, write_json, write_table
from recon_ray.data.format.prepared import PreparedSet, Split
from recon_ray.data.format.schema import MANIFEST, tensor_column
from recon_ray.data.format.shards import ShardFile
from recon_ray.data.format.stored_features import digest
from recon_ray.data.loading.images import ImageTransform, load_images
from recon_ray.data.loading.prefetch import prefetch
from recon_ray.errors import DataError
from recon_ray.storage import Place
from recon_ray.tasks.shard_encoding import RECORDS, EncodeTask, encode_shards
from recon_ray.teachers.bank import text_bank
from recon_ray.teachers.cache import (
    CACHE_VERSION,
    CACHES,
    TEXT_BANK,
    Identity,
    TeacherCache,
    cache_key,
    text_identity,
)
from recon_ray.teachers.prompts import prompts
from recon_ray.teachers.protocol import ImageTeacher, TextTeacher

logger = logging.getLogger(__name__)

TaskT = TypeVar("TaskT", bound="ShardTask")


@dataclass(frozen=True)
class TeacherWorker:
    """A teacher that encodes shards, before it is loaded.

    Attributes:
        make: Makes the teacher on the CPU.
        threads: Threads of torch. The sums of a forward pass on a CPU may depend on them.
        decoders: Threads that decode pictures; the result does not depend on them.
    """

    make: Callable[[], Any]
    threads: int
    decoders: int

    def start(self, device: str) -> Callable[[ImageTask | CaptionTask | TextTask], int]:
        """Make the teacher on a device and return the function that encodes a shard."""
        teacher = self.make().to(device)
        return lambda task: task.encode(teacher, threads=self.decoders)


# -- Pictures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardTask(EncodeTask):
    """Features of one shard of a set, with a record of the finished file.

    Attributes:
        source: File of the set that is encoded.
        rows: Samples in it.
        batch_size: Pictures or captions of a forward pass.
    """

    source: ShardFile
    rows: int
    batch_size: int

    @property
    def _record_place(self) -> Place:
        return Place(self.root) / RECORDS / self.file.replace(".parquet", ".json")

    def record(self, files: Mapping[str, int]) -> dict[str, Any] | None:
        """Return the record of a shard that is there already, None if it has to be encoded."""
        if self._record_place.below(Place(self.root)) not in files:
            return None
        record = read_json(self._record_place)
        if not isinstance(record, dict) or record.get("key") != self.key:
            return None
        return record if files.get(self.file) == record["bytes"] else None

    def is_finished(self, files: Mapping[str, int]) -> bool:
        """Return whether the shard is there already."""
        return self.record(files) is not None

    def _write(self, ids: Sequence[int], column: str, features: np.ndarray) -> None:
        """Write the features (rows, K, D) of the samples, and the record."""
        stored = pa.table({"sample_id": pa.array(ids, pa.int64()), column: tensor_column(features)})
        written = write_table(self.root, self.file, stored)
        record = {"key": self.key, "rows": self.rows, "images": self.units, **written}
        write_json(self._record_place, record)


@dataclass(frozen=True)
class ImageTask(ShardTask):
    """The image features of one shard of a set.

    Attributes:
        copies: K, features of a sample: augmented copies, or its views without augmentation.
        transform: Augmentation and size of a picture.
        seed: Seed of the augmentation.
    """

    copies: int
    transform: ImageTransform
    seed: int

    def encode(self, teacher: ImageTeacher, *, threads: int = 1) -> int:
        """Encode the pictures, write file and record, and return the number of pictures.

        Raises:
            DataError: If a picture does not decode or its features do not fit float16; the message
                names sample and shard.
        """
        ids, views = self._read(self.rows)
        features = np.zeros((self.rows, self.copies, teacher.dim), np.float16)

        def images() -> Iterator[tuple[int, slice, Tensor]]:
            for copy in range(self.copies):
                for start in range(0, self.rows, self.batch_size):
                    rows = slice(start, start + self.batch_size)
                    yield copy, rows, self._load(ids[rows], views[rows], copy, threads)

        try:
            for copy, rows, batch in prefetch(images):
                encoded = teacher.encode(batch).cpu().numpy()
                _check_range(encoded, ids[rows])
                features[rows, copy] = encoded
        except DataError as error:
            raise DataError(f"{self.source}: {error}") from error
        self._write(ids, "image_features", features)
        return self.units

    def first_batch(self) -> Tensor:
        """Load the first pictures of the shard: (B, 3, H, W), B at most the batch size."""
        return self._load(*self._read(self.batch_size), copy=0, threads=1)

    def _read(self, rows: int) -> tuple[list[int], list[list[bytes]]]:
        table = read_table(self.source, ["sample_id", "views"]).slice(0, rows)
        return table["sample_id"].to_pylist(), table["views"].to_pylist()

    def _load(self, ids: list[int], views: list[list[bytes]], copy: int, threads: int) -> Tensor:
        if self.transform.kind == "none":
            wrong = [i for i, row in enumerate(views) if len(row) != self.copies]
            if wrong:
                raise DataError(
                    f"Sample {ids[wrong[0]]} has {len(views[wrong[0]])} views, others have "
                    f"{self.copies}; cache with teacher.image.augment=reference, which takes any "
                    "number"
                )
            views = [[row[copy]] for row in views]
        return load_images(
            views, ids, epoch=copy, seed=self.seed, transform=self.transform, num_threads=threads
        )


def _check_range(features: np.ndarray, ids: Sequence[int]) -> None:
    bad = np.flatnonzero(~(np.abs(features) <= np.finfo(np.float16).max).all(axis=1))
    if len(bad):
        raise DataError(
            f"Sample {ids[int(bad[0])]}: its features are not finite or beyond the range of "
            "float16; train with teacher.image.mode=online"
        )


# -- Captions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CaptionTask(ShardTask):
    """The features of the captions in one shard of a set, one a shape."""

    def encode(self, teacher: TextTeacher, *, threads: int = 1) -> int:
        """Encode the captions, write file and record, and return the number of shapes.

        Raises:
            DataError: If a shape has no caption.
        """
        del threads
        rows = read_table(self.source, ["sample_id", "object_id", "caption"])
        texts = rows["caption"].to_pylist()
        if blank := [number for number, text in enumerate(texts) if not text.strip()]:
            raise DataError(
                f"{self.source}: {len(blank)} of {len(texts)} shapes have no caption (first: "
                f"{rows['object_id'][blank[0]]}); prepare the set again with a caption for each, "
                "or set data.text=category"
            )
        unique = list(dict.fromkeys(texts))
        features = np.zeros((0, 1, teacher.dim), np.float32)
        if unique:
            number = {text: place for place, text in enumerate(unique)}
            bank = text_bank(teacher, unique, use_prompts=False, batch_size=self.batch_size)
            features = bank.numpy()[[number[text] for text in texts]]
        self._write(rows["sample_id"].to_pylist(), "text_features", features)
        return self.units


# -- Plans ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CachePlan(Generic[TaskT]):
    """The features of a cache, shard by shard.

    Attributes:
        root: Folder of the cache.
        identity: Teacher, preprocessing, pictures and choices.
        splits: Split name to the shards in the set's order.
    """

    root: Place
    identity: Identity
    splits: dict[str, list[TaskT]]

    @property
    def tasks(self) -> list[TaskT]:
        """The shards of all splits."""
        return [task for tasks in self.splits.values() for task in tasks]


def make_cache_plan(
    prepared: PreparedSet, identity: Identity, splits: Sequence[str], transform: ImageTransform
) -> CachePlan[ImageTask]:
    """Assign the shards of a set to those of its cache; splits of an earlier job stay."""
    choices = identity["choices"]
    make = partial(ImageTask, transform=transform, copies=choices["copies"], seed=choices["seed"])
    return _plan(prepared, identity, splits, "views", make)


def make_caption_plan(
    prepared: PreparedSet, identity: Identity, splits: Sequence[str]
) -> CachePlan[CaptionTask]:
    """Assign the shards of a set to those of its captions' features."""
    return _plan(prepared, identity, splits, "geometry", CaptionTask)


def _plan(
    prepared: PreparedSet,
    identity: Identity,
    splits: Sequence[str],
    kind: Literal["geometry", "views"],
    make: Callable[..., TaskT],
) -> CachePlan[TaskT]:
    root = prepared.path / CACHES / cache_key(identity)
    before = read_json(root / MANIFEST)
    known = before.get("splits", {}) if isinstance(before, dict) else {}
    choices = identity["choices"]

    def task(split: str, path: ShardFile, rows: int) -> TaskT:
        return make(
            root=str(root),
            file=f"{split}/{path.name}",
            key=digest([identity, split, path.name]),
            units=rows * choices["copies"],
            source=path,
            rows=rows,
            batch_size=choices["batch_size"],
        )

    tasks = {
        name: [
            task(name, *shard)
            for shard in zip(getattr(split, kind), split.shard_rows.tolist(), strict=True)
        ]
        for name, split in prepared.splits.items()
        if name in {*splits, *known}
    }
    return CachePlan(root, identity, tasks)


def views_per_sample(split: Split) -> int:
    """Return the number of pictures of a sample of a split, from the footers of its files."""
    for place, rows in zip(split.views, split.shard_rows.tolist(), strict=True):
        if rows:
            with place.open() as content, pq.ParquetFile(content) as file:
                group = file.metadata.row_group(0)
                column = group.num_columns - 1  # the pictures come last
                return -(-group.column(column).num_values // group.num_rows)
    return 1


def build_cache(
    plan: CachePlan[TaskT],
    pool: EncodePool,
    make_worker: Callable[[], ShardWorker],
    *,
    dim: int,
    unit: str = "images",
) -> list[TaskT]:
    """Build or finish the features of a plan.

    Returns:
        The shards that were encoded.

    Raises:
        DataError: If a picture does not decode, or a file cannot be written.
    """

    def worker() -> ShardWorker:
        (plan.root / MANIFEST).unlink()  # an incomplete cache must not look complete
        return make_worker()

    encoded = encode_shards("cache_teachers", plan.tasks, pool, worker, unit=unit)
    files = plan.root.files()
    splits = {name: _split_record(tasks, files) for name, tasks in plan.splits.items()}
    shape = [plan.identity["choices"]["copies"], dim]
    _write_manifest(plan.root, plan.identity, shape=shape, splits=splits)
    return encoded


def _split_record(tasks: Sequence[ShardTask], files: Mapping[str, int]) -> dict[str, Any]:
    shards = []
    for task in tasks:
        record = task.record(files)
        if record is None:
            raise DataError(f"{task.root}/{task.file}: was removed while the job ran; run it again")
        shards.append({name: record[name] for name in ("file", "bytes", "sha256", "rows")})
    return {"rows": sum(shard["rows"] for shard in shards), "shards": shards}


def _write_manifest(root: Place, identity: Identity, **content: Any) -> None:  # noqa: ANN401
    manifest = {"version": CACHE_VERSION, "identity": dict(identity), **content}
    write_json(root / MANIFEST, manifest)


# -- Texts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextTask(EncodeTask):
    """The text bank of a set: one shard with its own manifest.

    Attributes:
        identity: Teacher, texts and prompts.
        texts: C texts.
        use_prompts: Put each into the 60 prompts.
    """

    identity: Identity
    texts: tuple[str, ...]
    use_prompts: bool

    def is_finished(self, files: Mapping[str, int]) -> bool:
        """Return whether the bank is there already and undamaged."""
        root = Place(self.root)
        if MANIFEST not in files:
            return False
        try:
            TeacherCache.open(root).text_bank(self.texts)
        except DataError as error:
            logger.warning("%s: it is written anew", error)
            return False
        return True

    def encode(self, teacher: TextTeacher, *, threads: int = 1) -> int:
        """Encode the texts, write bank and manifest, and return the number of texts."""
        del threads
        bank = text_bank(teacher, self.texts, use_prompts=self.use_prompts)
        count, per_text, dim = bank.shape
        sentences = [s for t in self.texts for s in (prompts(t) if self.use_prompts else [t])]
        table = pa.table(
            {
                "text": pa.array([t for t in self.texts for _ in range(per_text)], pa.string()),
                "prompt": pa.array(sentences, pa.string()),
                "feature": tensor_column(bank.reshape(-1, dim).numpy()),
            }
        )
        written = write_table(self.root, self.file, table)
        shape = [count, per_text, dim]
        _write_manifest(Place(self.root), self.identity, shape=shape, bank=written)
        return self.units


def make_text_task(
    folder: Place, teacher: Mapping[str, str], texts: Sequence[str], *, use_prompts: bool
) -> TextTask:
    """Plan the text bank of a set, each text in the 60 prompts or as it is."""
    identity = text_identity(teacher, texts, use_prompts=use_prompts)
    key = cache_key(identity)
    root = str(folder / CACHES / key)
    return TextTask(root, TEXT_BANK, key, len(texts), identity, tuple(texts), use_prompts)
