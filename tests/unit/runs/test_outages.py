"""An object store that does not answer for a while, in each of its operations."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import fsspec
import pyarrow.fs as pafs
import pytest
import torch

from recon_ray import storage as retries
from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.runs.checkpoint import CheckpointStore, Packed, pack
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.journal import Journal
from recon_ray.runs.lease import Holder, Lease
from recon_ray.train.commits import Commits
from recon_ray.train.stop_request import StopRequest

FOR_A_MOMENT, FOR_LONG = len(retries.RETRY_SECONDS), 1000


class Outages(pafs.FSSpecHandler):
    """A store in this process's memory whose operations fail as often as a test says."""

    def __init__(self) -> None:
        super().__init__(fsspec.filesystem("memory"))
        self.left: dict[str, int] = {}

    def _answer(self, operation: str) -> None:
        if self.left.get(operation, 0) > 0:
            self.left[operation] -= 1
            raise OSError(5, f"503 in {operation}")

    def get_file_info(self, paths):
        self._answer("look")
        if self.left.get("miss", 0) > 0:
            self.left["miss"] -= 1
            return [pafs.FileInfo(path, pafs.FileType.NotFound) for path in paths]
        return super().get_file_info(paths)

    def get_file_info_selector(self, selector):
        self._answer("list")
        return super().get_file_info_selector(selector)

    def create_dir(self, path, recursive):
        self._answer("make")
        return super().create_dir(path, recursive)

    def delete_dir(self, path):
        self._answer("delete")
        return super().delete_dir(path)

    def open_input_stream(self, path):
        self._answer("read")
        return super().open_input_stream(path)

    def open_output_stream(self, path, metadata):
        self._answer("write")
        return super().open_output_stream(path, metadata)


@pytest.fixture
def outages(monkeypatch) -> Outages:
    monkeypatch.setattr(retries, "RETRY_SECONDS", (0.0,) * FOR_A_MOMENT)
    return Outages()


@pytest.fixture
def store(outages, tmp_path) -> CheckpointStore:
    store = CheckpointStore(str(tmp_path / "checkpoints"), keep=1)
    store._fs, store.is_local = pafs.PyFileSystem(outages), False
    return store


def packed(step: int) -> Packed:
    name = f"step-{step:08d}"
    best = {"name": name, "metric": "accuracy", "value": step / 10, "epoch": step}
    return pack(step, model={"w": torch.ones(2)}, train={}, architecture={}, best=best)


@pytest.mark.parametrize("operation", ["look", "make", "delete", "read", "write"])
def test_a_moment_without_an_answer_is_not_noticed(store, outages, operation, caplog):
    store.write(packed(1))
    # Of a commit that was cut off, which is removed before this one is written.
    store.filesystem.create_dir(store.path("step-00000002"), recursive=True)
    outages.left = {operation: FOR_A_MOMENT}
    store.write(packed(2))
    assert store.load_latest().step == 2
    assert store.best()["name"] == "step-00000002"
    assert outages.left == {operation: 0}
    assert "trying again" in caplog.text
    assert store.names() == ["step-00000002"]


@pytest.mark.parametrize("operation", ["look", "make", "write"])
def test_a_long_outage_is_our_error_and_the_older_checkpoint_stays(store, outages, operation):
    store.write(packed(1))
    # Nothing can be cleaned up either.
    outages.left = {operation: FOR_LONG, "delete": FOR_LONG}
    with pytest.raises(CheckpointError, match=r"503 in "):
        store.write(packed(2))
    outages.left = {}
    assert store.names() == ["step-00000001"]
    assert store.load_latest().step == 1


def test_nobody_lists_checkpoints_as_long_as_the_newest_are_known(store, outages):
    store.write(packed(1))
    outages.left = {"list": FOR_LONG}
    store.write(packed(2))
    store._announce("step-00000003")  # a commit that was cut off before its manifest
    store.filesystem.create_dir(store.path("step-00000003"), recursive=True)
    again = CheckpointStore(store.uri, keep=1)
    again._fs, again.is_local = store._fs, False
    assert again.clean() == ["step-00000003"]
    assert again.load_latest().step == 2
    assert (again.newest(), again.selected()) == ("step-00000002", "step-00000002")
    again.write(packed(3))
    outages.left = {}
    assert again.names() == ["step-00000003"]
    assert again.clean() == []


@pytest.mark.parametrize("damage", ["gone", "half", "old"])
def test_without_a_useful_list_of_the_newest_the_folder_is_looked_at(store, damage):
    store.write(packed(1))
    path = store.path("recent.json")
    old = store._read(path)
    for step in (2, 3):
        store.write(packed(step))
    if damage == "gone":
        store.filesystem.delete_file(path)
    else:
        store._write(path, b'{"names": [' if damage == "half" else old)
    again = CheckpointStore(store.uri, keep=1)
    again._fs, again.is_local = store._fs, False
    assert again.load_latest().step == 3
    again.write(packed(4))
    assert again.names() == (["step-00000003", "step-00000004"][damage != "old" :])


def test_what_cannot_be_deleted_ends_no_run_and_goes_later(store, outages, caplog):
    store.write(packed(1))
    outages.left = {"delete": FOR_LONG}
    store.write(packed(2))
    assert "older checkpoints could not be deleted (" in caplog.text
    store.filesystem.create_dir(store.path("step-00000009"), recursive=True)
    store.clean()
    assert "what is left over could not be deleted (" in caplog.text
    outages.left = {}
    store.write(packed(3))
    assert store.names() == ["step-00000003"]


def test_unpublished_records_come_with_the_next_commit(store, outages, tmp_path, caplog):
    folder = RunFolder(str(tmp_path / "run"))
    folder.local.mkdir()
    (folder.local / "metrics.jsonl").write_text("{}\n")
    published = Path(f"/{tmp_path.name}/published")
    folder._fs, folder._root, folder.is_local = store.filesystem, str(published), False

    class Alone:
        rank, world_size, attempt, keeps_ledger = 0, 1, "a", False
        device = torch.device("cpu")

        def __init__(self) -> None:
            self.store, self.folder = store, folder
            self.announced: list[str] = []

        def stop_request(self) -> StopRequest:
            return StopRequest.NONE

        def committed(self, name, step, metrics) -> None:
            self.announced.append(name)

    runtime = Alone()
    commits = Commits(runtime, every_seconds=1000.0, journal=Journal(folder))

    def commit(step: int) -> None:
        name = f"step-{step:08d}"
        commits.store(lambda: packed(step), name=name, step=step, metrics={}, failure="")
        commits.finish()

    written = folder.publish

    def publish() -> None:
        outages.left = {"write": FOR_LONG}
        try:
            written()
        finally:
            outages.left = {}

    folder.publish = publish
    commit(1)
    assert folder.read("metrics.jsonl") is None
    assert "the next commit tries again" in caplog.text
    folder.publish = written
    commit(2)
    assert runtime.announced == ["step-00000001", "step-00000002"]
    assert folder.read("metrics.jsonl") == "{}\n"


# --- One job at a time ---------------------------------------------------------------------------
class LeaseOfAnother:
    """The lease of a job on another machine, in a store that fails as often as a test says."""

    def __init__(self, folder: Path, outages: Outages) -> None:
        self.lease = Lease(str(folder), "run")
        self.lease._file._fs = pafs.PyFileSystem(outages)
        self.path = f"{folder}/lease.json"
        self.memory, self.outages = outages.fs, outages
        self.beat(0)

    def beat(self, count: int) -> None:
        holder = Holder("key", "node7", "another machine", 4711, "1", beat=count)
        self.memory.pipe(self.path, json.dumps(vars(holder)).encode())


@pytest.fixture
def another(tmp_path, outages, monkeypatch) -> LeaseOfAnother:
    """Patience is for a busy machine; a lease that changes or goes away is seen at once."""
    for name, seconds in (("PATIENCE_SECONDS", 20.0), ("LOOK_SECONDS", 0.02)):
        monkeypatch.setattr(f"recon_ray.runs.lease.{name}", seconds)
    return LeaseOfAnother(tmp_path, outages)


@pytest.mark.parametrize("operation", ["look", "read"])
def test_an_answer_that_fails_does_not_end_the_lease_of_another_job(another, operation):
    def fail_and_beat() -> None:
        another.outages.left = {operation: 5}
        another.beat(1)

    threading.Timer(0.1, fail_and_beat).start()
    with pytest.raises(ConfigError, match="process 4711 on node7 is running it now"):
        another.lease.check()
    assert another.outages.left == {operation: 0}


def test_a_lease_that_is_missed_once_has_not_ended(another):
    def miss_and_beat() -> None:
        another.outages.left = {"miss": 2}
        another.beat(1)

    threading.Timer(0.1, miss_and_beat).start()
    with pytest.raises(ConfigError, match="is running it now"):
        another.lease.check()


def test_a_lease_that_is_gone_has_ended(another):
    threading.Timer(0.1, another.memory.rm, (another.path,)).start()
    began = time.monotonic()
    another.lease.check()
    assert time.monotonic() - began < 15  # its silence would have ended it only then


@pytest.mark.parametrize("after", [0.0, 0.1])
def test_a_lease_that_cannot_be_read_is_not_taken(another, after, monkeypatch):
    monkeypatch.setattr("recon_ray.runs.lease.PATIENCE_SECONDS", 1.0)
    failing = threading.Timer(after, another.outages.left.update, ({"look": FOR_LONG},))
    failing.start()
    if not after:
        failing.join()
    with pytest.raises(CheckpointError, match="it cannot be read"):
        another.lease.check()


def test_a_holder_that_cannot_read_its_lease_writes_nothing_over_it(another):
    another.lease._file.own = Holder.here()
    before = another.memory.cat(another.path)
    another.outages.left = {"read": 1}
    assert another.lease._file.renew() is None
    assert another.memory.cat(another.path) == before
    assert another.lease._file.renew().host == "node7"
