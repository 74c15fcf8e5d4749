"""Where a run goes on: at the same epoch and sample, whatever the batch, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from settings_samples import make_settings

from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.runs.checkpoint import Checkpoint, CheckpointStore, pack
from recon_ray.train import state
from recon_ray.train.state import Progress, SampleOrder, restored, started_from

ORDER = SampleOrder(rows=100, training_set="a", seed=3, global_batch_size=8)  # 12 steps an epoch


def checkpoint(epoch: int, samples: int, **changes: Any) -> Checkpoint:
    """A checkpoint of a run with ``ORDER``."""
    step = epoch * 12 + samples // 8
    progress = Progress(epoch=epoch, samples_in_epoch=samples, step=step, samples=8 * step)
    progress.best = changes.pop("best", None)
    train = {
        "progress": progress.stored(), **ORDER.stored(), "optimizer": {}, "interval": {"lap": [1]},
        **changes,
    }  # fmt: skip
    return Checkpoint(f"step-{step:08d}", step, {}, {}, train)


def order(**changes: Any) -> SampleOrder:
    return SampleOrder(**{**ORDER.stored(), **changes})


def start(found: Checkpoint, now: SampleOrder, **settings: Any) -> Progress:
    """Progress of a run that starts from a checkpoint."""
    options = make_settings(epochs=settings.pop("epochs", 10), **settings)
    begun = started_from(found, now, options, source="resume=old")
    assert begun.name == f"step-{begun.step:08d}"
    assert "interval" not in begun.train  # its records are those of another run
    again = restored(begun, now, options, streams=False, source="own")
    assert again.step == begun.step
    return again


@pytest.mark.parametrize(
    ("place", "now", "step"),
    [
        ((3, 0), {}, 36),
        ((3, 0), {"global_batch_size": 16}, 18),
        ((3, 0), {"global_batch_size": 4}, 75),
        ((3, 0), {"global_batch_size": 7}, 42),
        ((3, 0), {"rows": 50, "training_set": "b", "seed": 4}, 18),
        ((3, 48), {}, 42),
        ((3, 48), {"global_batch_size": 16}, 21),
        ((3, 48), {"global_batch_size": 4}, 87),
        ((3, 48), {"global_batch_size": 48}, 7),
    ],
)
def test_a_place_is_epochs_and_samples_and_steps_are_counted_anew(place, now, step):
    progress = start(checkpoint(*place), order(**now))
    assert (progress.epoch, progress.samples_in_epoch, progress.step) == (*place, step)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (
            {"global_batch_size": 32},
            r"train\.global_batch_size=32: resume=old lies 48 shapes inside epoch 4 \(in batches "
            "of 8\\), .* choose a divisor of 48",
        ),
        ({"rows": 50}, r"48 shapes inside epoch 4, .* \(100 training shapes then, 50 now: data\.l"),
        ({"training_set": "b"}, r"other training shapes now: data\.path"),
        ({"seed": 4}, r"run\.seed=3 then, 4 now"),
    ],
)
def test_inside_an_epoch_samples_are_neither_repeated_nor_left_out(now, message):
    with pytest.raises(ConfigError, match=message):
        start(checkpoint(3, 48), order(**now))


@pytest.mark.parametrize(
    ("place", "now", "settings", "message"),
    [
        ((3, 0), {}, {"epochs": 3}, r"train\.epochs=3: nothing is left .* 3 epochs behind it"),
        ((3, 48), {}, {"epochs": 2}, r"train\.epochs=2: nothing is left .* 3 epochs behind it"),
        (
            (3, 0),
            {"global_batch_size": 4},
            {"steps": 75},
            r"train\.steps=75: nothing is left .* has 75 steps behind it",
        ),
    ],
)
def test_a_training_of_which_nothing_is_left_is_refused(place, now, settings, message):
    with pytest.raises(ConfigError, match=message):
        start(checkpoint(*place), order(**now), **settings)


def test_checkpoints_of_older_versions_count_in_steps():
    old = checkpoint(3, 48)
    del old.train["progress"]["samples_in_epoch"], old.train["rows"], old.train["training_set"]
    old.train["progress"]["step_in_epoch"] = 6
    progress = start(old, order(global_batch_size=4))
    assert (progress.epoch, progress.samples_in_epoch, progress.step) == (3, 48, 87)


def test_the_best_checkpoint_is_remembered_where_it_is_the_one_to_start_from():
    best = {"name": "step-00000036", "metric": "accuracy", "value": 0.5, "epoch": 2}
    found = start(checkpoint(3, 0, best=best), order(global_batch_size=4)).best
    assert found == {**best, "name": "step-00000075"}
    assert start(checkpoint(3, 0, best={**best, "name": "step-00000024"}), ORDER).best is None


def test_a_run_of_its_own_ends_as_often_as_asked_and_goes_on_as_it_was_begun():
    def go_on(found: Checkpoint, now: SampleOrder = ORDER, **settings: Any) -> Progress:
        options = make_settings(epochs=3, **settings)
        return restored(found, now, options, streams=False, source="own")

    assert go_on(checkpoint(3, 0)).step == 36  # its result is made again
    with pytest.raises(ConfigError, match=r"train\.steps=20: nothing is left .* own has 36 steps"):
        go_on(checkpoint(3, 0), steps=20)
    with pytest.raises(ConfigError, match=r"train\.global_batch_size=8 then, 4 now.*resume=own"):
        go_on(checkpoint(1, 0), order(global_batch_size=4))
    with pytest.raises(ConfigError, match=r"100 training shapes then, 50 now"):
        go_on(checkpoint(1, 0), order(rows=50))


def test_without_the_optimizer_a_run_ends_but_does_not_go_on():
    dropped = checkpoint(3, 0)
    del dropped.train["optimizer"]
    settings = make_settings(epochs=3)
    restored(dropped, ORDER, settings, streams=False, source="own")
    with pytest.raises(ConfigError, match=r"old: its optimizer state was dropped .*init_from"):
        start(dropped, ORDER)
    longer = make_settings(epochs=4)
    with pytest.raises(ConfigError, match="own: its optimizer state was dropped"):
        restored(dropped, ORDER, longer, streams=False, source="own")


# --- The newest checkpoint, for all workers -------------------------------------------------------
class Counted(CheckpointStore):
    """A store that counts what this process reads from it."""

    reads = 0

    def _read(self, path: str) -> bytes:
        self.reads += 1
        return super()._read(path)


def _worker(rank: int, folder: Path) -> None:
    state.PART_BYTES = 1000
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=3)
    found = []
    for place in ("none", "whole", "damaged"):
        store = Counted(str(folder / place))
        try:
            loaded = state.newest_checkpoint(store, torch.device("cpu"), rank=rank)
            found.append((None if loaded is None else vars(loaded), store.reads))
        except CheckpointError as error:
            found.append((str(error), store.reads))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_one_worker_reads_the_checkpoint_and_all_have_it_or_its_error(tmp_path):
    for place in ("whole", "damaged"):
        store = CheckpointStore(str(tmp_path / place))
        train = {"progress": {"step": 7}, "empty": torch.empty(0)}
        store.write(pack(7, model={"w": torch.rand(999)}, train=train, architecture={"a": [1]}))
    (tmp_path / "damaged" / "step-00000007" / "model.pt").write_bytes(b"half")
    mp.start_processes(_worker, (tmp_path,), nprocs=3, start_method="spawn")
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(3)]
    expected = vars(CheckpointStore(str(tmp_path / "whole")).load_latest())
    for rank, ((none, _), (whole, reads), (damaged, _)) in enumerate(ranks):
        assert none is None
        assert torch.equal(whole["model"].pop("w"), expected["model"]["w"])
        assert whole["train"].pop("empty").shape == (0,)
        same = {"name": "step-00000007", "step": 7, "architecture": {"a": [1]}, "records": {}}
        assert whole == {**same, "model": {}, "train": {"progress": {"step": 7}}}
        assert "all 1 checkpoints are damaged" in damaged
        assert reads == (3 if rank == 0 else 0)
