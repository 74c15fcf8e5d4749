"""Costs of a batch, a commit and a restart of a run, counted at different sizes and ages."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pyarrow import fs as pafs

from recon_ray.benchmarks.counted_store import CountedStore
from recon_ray.data.loading.batches import BatchOptions, text_numbers
from recon_ray.runs.checkpoint import CheckpointStore, Packed, pack
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.recorder import Recorder
from recon_ray.train.sample_ledger import SampleLedger

BATCH = 1024
CPU = torch.device("cpu")


def median_ms(call: Callable[[], object], repeats: int = 30) -> float:
    """Return the median time of a call in milliseconds, after one that does not count."""
    call()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)


def caption_costs(captions: int) -> dict[str, float]:
    """Return milliseconds to find the captions of a batch among a number of captions."""
    texts = [f"a shape that is called number {number}" for number in range(captions)]
    options = BatchOptions(text="caption", captions=texts)
    chosen = np.random.default_rng(0).integers(0, captions, BATCH)
    rows = {"caption": [f"{texts[number]}" for number in chosen]}
    assert text_numbers(rows, options).tolist() == chosen.tolist()
    return {"ms_a_batch": median_ms(lambda: text_numbers(rows, options))}


def ledger_costs(samples: int, *, epochs: int = 3) -> dict[str, float]:
    """Return the costs of the ledger of a set with a number of samples, after whole epochs."""
    ledger, random = SampleLedger(), np.random.default_rng(0)
    for epoch in range(epochs):
        for start in range(0, samples, 1 << 24):
            ledger.mark(epoch, torch.arange(start, min(start + (1 << 24), samples)))
            ledger.merge(CPU)
    ids = torch.from_numpy(random.integers(0, samples, BATCH))
    found = {"ms_a_batch": median_ms(lambda: ledger.mark(epochs, ids))}
    began = time.perf_counter()
    ledger.merge(CPU)
    stored = ledger.merged
    found["ms_a_commit"] = 1e3 * (time.perf_counter() - began)
    found["stored_bytes"] = float(sum(_bytes_of(one) for one in stored.values()))
    return found


def _bytes_of(stored: dict[str, torch.Tensor] | torch.Tensor) -> int:
    return sum(t.nbytes for t in (stored.values() if isinstance(stored, dict) else [stored]))


def place_on(store: CountedStore, folder: RunFolder, root: str) -> None:
    """Let a local folder be the local part of one in a counted store."""
    folder._fs, folder._root, folder.is_local = pafs.PyFileSystem(store), root, False


def record_costs(commits: int, *, records_a_commit: int = 20) -> list[dict[str, int]]:
    """Return requests and bytes of each commit's records, and last those of a restart."""
    store, costs = CountedStore(), []
    with tempfile.TemporaryDirectory() as local:
        folder = RunFolder(local)
        place_on(store, folder, "bucket/run")
        recorder = Recorder(folder, start_step=0)
        store.taken()
        for commit in range(commits):
            for step in range(commit * records_a_commit, (commit + 1) * records_a_commit):
                values = {f"train/value_{number}": float(step + number) for number in range(12)}
                recorder.write(step + 1, 0, values)
            folder.publish()
            costs.append(store.taken())
        recorder.close()
    with tempfile.TemporaryDirectory() as local:
        folder = RunFolder(local)
        place_on(store, folder, "bucket/run")
        Recorder(folder, start_step=commits * records_a_commit - 3).close()
        costs.append(store.taken())
    return costs


def checkpoint_costs(kept: int) -> dict[str, dict[str, int]]:
    """Return requests and bytes of a commit, and of finding the newest, beside kept checkpoints."""
    counted = CountedStore()
    for step in range(1, kept + 1):
        _store(counted).write(_checkpoint(step)) if step == 1 else _copy(counted, step)
    _store(counted).write(_checkpoint(kept + 1))
    store, found = _store(counted), {}
    counted.taken()
    store.clean()
    assert store.load_latest() is not None
    found["start"] = counted.taken()
    store.write(_checkpoint(kept + 2))
    found["first commit"] = counted.taken()
    store.write(_checkpoint(kept + 3))
    found["commit"] = counted.taken()
    return found


def _store(counted: CountedStore) -> CheckpointStore:
    store = CheckpointStore(str(Path("bucket/run/checkpoints")), keep=3, keep_every=1)
    store._fs, store._root = pafs.PyFileSystem(counted), "/bucket/run/checkpoints"
    store.is_local = False
    return store


def _checkpoint(step: int) -> Packed:
    return pack(step, model={"w": torch.ones(8)}, train={"progress": {}}, architecture={})


def _copy(counted: CountedStore, step: int) -> None:
    """Put a checkpoint of another step beside the first one."""
    root = "/bucket/run/checkpoints"
    for path in counted.fs.ls(f"{root}/step-00000001", detail=False):
        counted.fs.pipe(path.replace("00000001", f"{step:08d}"), counted.fs.cat(path))
