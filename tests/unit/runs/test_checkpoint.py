import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from recon_ray.errors import CheckpointError
from recon_ray.runs.checkpoint import (
    MANIFEST,
    CheckpointStore,
    load_model_state,
    not_finite,
    pack,
)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(str(tmp_path / "checkpoints"), keep=3)


def _save(store: CheckpointStore, step: int) -> str:
    packed = pack(
        step,
        model={"weight": torch.full((2, 3), float(step))},
        train={"progress": {"step": step}, "seen": torch.ones(4, dtype=torch.uint8)},
        architecture={"embed_dim": 3},
    )
    store.write(packed)
    return packed.name


def _folder(store: CheckpointStore, name: str) -> Path:
    return Path(store.path(name))


def test_what_is_saved_is_loaded(store):
    assert store.load_latest() is None
    name = _save(store, 10)
    found = store.load_latest()
    assert (found.name, found.step, found.architecture) == (name, 10, {"embed_dim": 3})
    assert torch.equal(found.model["weight"], torch.full((2, 3), 10.0))
    assert found.train["progress"] == {"step": 10}
    assert found.train["seen"].tolist() == [1, 1, 1, 1]


def test_only_the_newest_are_kept(store):
    for step in (1, 2, 3, 4, 5):
        _save(store, step)
    assert store.names() == ["step-00000003", "step-00000004", "step-00000005"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "manifest"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(store, damage, caplog):
    _save(store, 1)
    folder = _folder(store, _save(store, 2))
    target = folder / ("train.pt" if damage != "manifest" else MANIFEST)
    if damage == "truncate":
        target.write_bytes(target.read_bytes()[:300])
    elif damage == "flip":
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 1
        target.write_bytes(bytes(content))
    elif damage == "delete":
        target.unlink()
    else:
        target.write_text("{")
    assert store.load_latest().step == 1
    assert str(target) in caplog.text


def test_a_damaged_checkpoint_is_written_again_when_the_run_is_there_again(store, caplog):
    _save(store, 1)
    folder = _folder(store, _save(store, 2))
    (folder / "train.pt").write_bytes(b"damaged")
    assert store.load_latest().step == 1
    caplog.clear()
    _save(store, 2)
    assert "train.pt is damaged" in caplog.text
    assert "written again" in caplog.text
    assert store.load_latest().step == 2
    written = (folder / "train.pt").stat().st_mtime_ns
    for again in (store, CheckpointStore(store.uri)):  # has loaded it, and has not
        _save(again, 2)
    assert (folder / "train.pt").stat().st_mtime_ns == written


def test_a_newer_damaged_checkpoint_takes_no_place_of_one_that_is_whole(tmp_path):
    store = CheckpointStore(str(tmp_path), keep=1)
    for step in (1, 5):
        _save(store, step)
    _save(store, 1)
    (_folder(store, "step-00000005") / "train.pt").write_bytes(b"damaged")
    assert store.load_latest().step == 1
    _save(store, 3)
    assert store.load_latest().step == 3
    _save(store, 6)
    assert store.names() == ["step-00000006"]


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(store):
    folder = _folder(store, _save(store, 1))
    (folder / "model.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        store.load_latest()


def test_a_folder_without_manifest_is_no_checkpoint(store):
    _save(store, 1)
    (_folder(store, _save(store, 2)) / MANIFEST).unlink()
    assert store.load_latest().step == 1


def test_another_format_is_refused(store):
    folder = _folder(store, _save(store, 1))
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CheckpointError, match="checkpoint format 99, this version reads 1"):
        store.load("step-00000001")


def test_a_full_disk_keeps_older_checkpoints_and_leaves_nothing_half_written(store, monkeypatch):
    _save(store, 1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recon_ray.runs.checkpoint.os.fsync", full)
    message = r"No space left.*continues from the checkpoint before"
    with pytest.raises(CheckpointError, match=message):
        _save(store, 2)
    monkeypatch.undo()
    assert store.load_latest().step == 1
    assert [path.name for path in Path(store.path("")).iterdir()] == ["step-00000001"]


def test_a_store_on_a_file_system_that_cannot_rename_works_too(tmp_path):
    remote = CheckpointStore(f"file://{tmp_path}/remote")
    remote.is_local = False  # object stores: the manifest comes last, there is no rename
    _save(remote, 1)
    shutil.rmtree(tmp_path / "remote" / "step-00000001")
    _save(remote, 2)
    (tmp_path / "remote" / "step-00000003").mkdir()  # a write that was cut off
    assert remote.load_latest().step == 2


def test_other_shapes_and_keys_are_named():
    state = nn.Linear(4, 2).state_dict()
    message = r"weight has shape \(2, 4\).* has \(2, 5\); set model"
    with pytest.raises(CheckpointError, match=message):
        load_model_state(nn.Linear(5, 2), state, source="x.pt")
    state = nn.Linear(4, 2, bias=False).state_dict() | {"other": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"missing: bias; unexpected: other"):
        load_model_state(nn.Linear(4, 2), state, source="x.pt")


def test_values_that_are_not_finite_are_found_by_name_and_large_ones_are_none():
    state = {
        "large": torch.full((10,), 3e38),  # whose sum is infinite
        "nan": torch.tensor([1.0, float("nan")]),
        "both": torch.tensor([float("inf"), 0.0, -float("inf")]),
        "half": torch.tensor(float("inf"), dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "empty": torch.zeros(0),
    }
    assert not_finite(state) == ["nan", "both", "half"]
    assert not_finite({}) == []


def test_optimizers_are_dropped_from_whole_checkpoints(store, caplog):
    for step in (1, 2):
        packed = pack(
            step,
            model={"w": torch.ones(2)},
            train={"progress": {"step": step}, "optimizer": {"m": torch.ones(9)}},
            architecture={},
        )
        store.write(packed)
    (_folder(store, "step-00000001") / "model.pt").write_bytes(b"damaged")
    store.drop_optimizer()
    assert "step-00000001: the optimizer's state stays" in caplog.text
    found = CheckpointStore(store.uri).load("step-00000002")
    assert found.train == {"progress": {"step": 2}}
    files = {path.name for path in _folder(store, "step-00000002").iterdir()}
    assert files == {"model.pt", "progress.pt", MANIFEST}
    (_folder(store, "step-00000002") / "train.pt").write_bytes(b"left by a killed process")
    before = (_folder(store, "step-00000002") / "progress.pt").stat().st_mtime_ns
    store.drop_optimizer()
    assert {path.name for path in _folder(store, "step-00000002").iterdir()} == files
    assert (_folder(store, "step-00000002") / "progress.pt").stat().st_mtime_ns == before
