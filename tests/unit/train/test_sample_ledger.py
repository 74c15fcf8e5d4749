"""Uses of every sample: exact whatever their order, and no dearer in a large set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recon_ray.benchmarks.memory import TensorPeak
from recon_ray.runs.folder import RunFolder
from recon_ray.train import sample_ledger
from recon_ray.train.sample_ledger import SampleLedger, ledger_table, write_ledger

CPU = torch.device("cpu")
MANY = 100_000_000


def uses(ledger: SampleLedger) -> list[tuple[int, int, int]]:
    rows = ledger_table(ledger.merged).to_pylist()
    return [(row["epoch"], row["sample_id"], row["uses"]) for row in rows]


def test_uses_are_counted_by_epoch_and_go_on_from_a_checkpoint():
    ledger = SampleLedger()
    ledger.mark(0, torch.tensor([0, 5, 2]))
    ledger.merge(CPU)
    ledger.mark(0, torch.tensor([9, 5]))
    ledger.mark(1, torch.tensor([1]))
    ledger.merge(CPU)
    again = SampleLedger(ledger.merged)
    again.mark(1, torch.tensor([2]))  # is lost: nobody commits it
    assert uses(again) == [(0, 0, 1), (0, 2, 1), (0, 5, 2), (0, 9, 1), (1, 1, 1)]


def test_counts_of_an_older_version_go_on():
    counts = {0: torch.tensor([255, 3, 0], dtype=torch.uint8), 1: torch.zeros(0, dtype=torch.int32)}
    ledger = SampleLedger(counts)
    ledger.mark(0, torch.tensor([0] * 300 + [1, 2]))
    ledger.merge(CPU)
    assert uses(SampleLedger(ledger.merged)) == [(0, 0, 555), (0, 1, 4), (0, 2, 1)]


@pytest.mark.parametrize("seed", range(40))
def test_random_uses_are_what_was_marked(seed, monkeypatch, tmp_path):
    monkeypatch.setattr(sample_ledger, "AT_ONCE", 64)
    random = np.random.default_rng(seed)
    size, ledger, expected = int(random.integers(1, 400)), SampleLedger(), {}
    for _ in range(int(random.integers(1, 6))):
        for _ in range(int(random.integers(1, 4))):
            first = int(random.integers(size))
            ids = random.integers(0, size, 50) if random.random() < 0.5 else np.arange(first, size)
            epoch = int(random.integers(3))
            ledger.mark(epoch, torch.from_numpy(ids))
            for sample in ids.tolist():
                expected[epoch, sample] = expected.get((epoch, sample), 0) + 1
        ledger.merge(CPU)
        ledger = SampleLedger(ledger.merged) if random.random() < 0.5 else ledger
    assert {(epoch, sample): count for epoch, sample, count in uses(ledger)} == expected
    write_ledger(RunFolder(str(tmp_path)), ledger.merged)
    assert pq.read_table(tmp_path / "ledger.parquet").equals(ledger_table(ledger.merged))


def test_a_batch_costs_its_own_samples_and_an_ended_epoch_next_to_nothing():
    ledger, random = SampleLedger(), np.random.default_rng(0)
    whole = torch.arange(1_000_000)
    for epoch in range(3):
        ledger.mark(epoch, whole[torch.randperm(len(whole))][:-7])  # without the last batch
        ledger.merge(CPU)
    runs = [stored["runs"] for stored in ledger.merged.values()]
    assert sum(one.nbytes for one in runs) <= 3 * 8 * 16
    ledger.mark(3, torch.tensor([MANY - 1]))
    ledger.merge(CPU)
    for _ in range(50):
        ids = torch.from_numpy(random.integers(0, MANY, 1024))
        with TensorPeak() as made:
            ledger.mark(3, ids)
        assert made.peak <= 4 * ids.nbytes
    ledger.merge(CPU)
    assert sum(tensor.nbytes for tensor in ledger.merged[3].values()) < 1_000_000


def _worker(rank: int, folder: Path) -> None:
    sample_ledger.AT_ONCE = 6
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    ledger = SampleLedger()
    for epoch in range(2):
        ledger.mark(epoch, torch.arange(rank, 10 + 6 * rank, 2))
    ledger.merge(CPU)
    ledger.merge(CPU)  # nothing new
    if rank == 0:
        torch.save(ledger.merged, folder / "ledger.pt")
    else:
        assert ledger.merged == {}
    dist.destroy_process_group()


def test_rank_0_gets_what_every_worker_has_used(tmp_path):
    mp.start_processes(_worker, (tmp_path,), nprocs=2, start_method="spawn")
    ledger = SampleLedger(torch.load(tmp_path / "ledger.pt", weights_only=True))
    used = sorted([*range(0, 10, 2), *range(1, 16, 2)])
    assert uses(ledger) == [(epoch, sample, 1) for epoch in range(2) for sample in used]
