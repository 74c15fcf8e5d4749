"""Costs of opening and preparing sets of very many shards, counted on a store in memory."""

from __future__ import annotations

import gc
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs as pafs

from recon_ray.benchmarks.counted_store import CountedStore
from recon_ray.benchmarks.memory import resident_bytes, watch_memory
from recon_ray.data.format.files import write_json, write_table
from recon_ray.data.format.manifest import SHARD_TABLE
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.schema import MANIFEST, SCHEMA_VERSION
from recon_ray.data.format.shards import shard_schema
from recon_ray.data.loading.shard_reader import ShardReader, SplitFiles
from recon_ray.data.loading.stream_order import Read
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions, ShardTask
from recon_ray.data.sources.base import Item, Listing, Sample
from recon_ray.data.sources.items import SCHEMA, Items
from recon_ray.storage import Place, serving

#: Rows of a shard of the sets here.
ROWS = 10
#: Shards that one task reads.
TASK_SHARDS = 5
KIND = "counted"


@dataclass
class Cost:
    """What a piece of work took: requests, bytes, CPU seconds, and growth of memory in MB."""

    requests: int
    read: int
    written: int
    cpu_seconds: float
    megabytes: float

    def metrics(self, name: str) -> dict[str, float]:
        """Return the numbers by name."""
        return {f"{name}/{key}": float(value) for key, value in vars(self).items()}


def costs_of(work: Any, store: CountedStore) -> tuple[Any, Cost]:  # noqa: ANN401 - a function
    """Do a piece of work and return its result and what it took."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    store.taken()
    before, began = resident_bytes(os.getpid()), time.process_time()
    with watch_memory(resident_bytes, interval=0.02) as peak:
        result = work()
    seconds, counted = time.process_time() - began, store.taken()
    grown = (peak.bytes - before) / 1e6
    return result, Cost(counted["requests"], counted["read"], counted["write"], seconds, grown)


def write_large_set(root: Place, shards: int) -> None:
    """Write the manifest of a set with a number of shards, without the shards."""
    numbers = np.arange(shards)
    digests = np.random.default_rng(0).integers(0, 256, (shards, 32), dtype=np.uint8)
    columns: dict[str, Any] = {
        "split": ["train"] * shards,
        "name": [f"part-{number:05d}-of-{shards:05d}.parquet" for number in numbers],
        "rows": np.full(shards, ROWS),
        "min_sample_id": numbers * ROWS,
        "max_sample_id": numbers * ROWS + ROWS - 1,
        "geometry_bytes": np.full(shards, 1000),
        "geometry_sha256": pa.Array.from_buffers(
            pa.binary(32), shards, [None, pa.py_buffer(digests)]
        ),
    }
    table = pa.table(columns, schema=shard_schema(["geometry"]))
    entry = write_table(root, SHARD_TABLE.format(version=1), table)
    rows = shards * ROWS
    split = {"rows": rows, "planned": rows, "first_sample_id": 0, "num_shards": shards}
    write_json(
        root / MANIFEST,
        {
            "schema_version": SCHEMA_VERSION, "version": 1, "num_points": 8, "rows": rows,
            "points_dtype": "float32", "has_normals": False, "has_colors": False, "views": None,
            "classes": ["shape"], "splits": {"train": split}, "shards": [entry],
        },
    )  # fmt: skip


def opening_costs(shards: int, latency: float) -> Cost:
    """Open a set with a number of shards in a store of a latency in seconds."""
    store = CountedStore()
    with serving(KIND, pafs.PyFileSystem(store)):
        root = Place(f"{KIND}://bucket/set")
        write_large_set(root, shards)
        store.latency = latency
        opened, cost = costs_of(lambda: PreparedSet.open(root), store)
    assert len(opened.splits["train"].geometry) == shards
    return cost


def reader_bytes(shards: int) -> int:
    """Return the bytes of a task of Ray that reads the last shards of a set, pickled."""
    store = CountedStore()
    with serving(KIND, pafs.PyFileSystem(store)):
        root = Place(f"{KIND}://bucket/set")
        write_large_set(root, shards)
        files = SplitFiles((PreparedSet.open(root).splits["train"].geometry,))
    reads = [files.of(Read(n, range(ROWS))) for n in range(shards - TASK_SHARDS, shards)]
    return len(pickle.dumps(partial(ShardReader(("sample_id", "points")), reads)))


@dataclass(frozen=True)
class ManySamples:
    """A source of very many samples, which are never loaded."""

    count: int
    name: str = "many"

    def scan(self) -> Listing:
        """List the samples, in columns."""
        numbers = pa.array(np.arange(self.count)).cast(pa.string())
        same = {name: pa.array([""] * self.count) for name in ("caption", "file")}
        one = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(self.count, np.int32)), pa.array(["train"])
        )
        columns = {
            "object_id": numbers, "split": one, "category": one, **same,
            "label": np.zeros(self.count, np.int32), "size_bytes": np.zeros(self.count, np.int64),
            "images": pa.array([[]] * self.count, pa.list_(pa.string())),
        }  # fmt: skip
        table = pa.table(columns).select(SCHEMA.names).cast(SCHEMA)
        return Listing(Items(table), ("train",))

    def load(self, item: Item) -> Sample:
        """Refuse."""
        raise NotImplementedError


def preparing_costs(shards: int) -> Cost:
    """Plan, record and finish a set with a number of shards, which a fake builder counts."""
    store = CountedStore()

    def build(_: object, tasks: Sequence[ShardTask]) -> Iterator[dict[str, Any]]:
        for task in tasks:
            yield _record(store, task)

    with serving(KIND, pafs.PyFileSystem(store)):
        options = PrepareOptions(num_points=8, samples_per_shard=ROWS)
        source, root = ManySamples(shards * ROWS), f"{KIND}://bucket/set"
        _, cost = costs_of(lambda: prepare(source, root, options, run=build), store)
    return cost


def _record(store: CountedStore, task: ShardTask) -> dict[str, Any]:
    """Return the record of a shard of one byte, which is put into the store uncounted."""
    file = f"geometry/{task.split}/{task.name}"
    files = store.fs.store
    if "/one" not in files:
        store.fs.pipe("/one", b"1")
    files[f"/bucket/set/{file}"] = files["/one"]
    rows, first = len(task.items), task.first_sample_id
    return {
        "number": task.number, "split": task.split, "planned": rows, "rows": rows,
        "min_sample_id": first, "max_sample_id": first + rows - 1,
        "geometry": {"file": file, "bytes": 1, "sha256": "00" * 32},
        "labels": {"train": rows}, "quarantine": [],
        "coordinates": {"count": rows, "sum": 0.0, "squares": 0.0, "min": 0.0, "max": 0.0},
    }  # fmt: skip
