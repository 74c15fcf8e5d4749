"""When a run commits, what is kept, and what is left when it is disturbed; all without Ray."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import torch
from test_fit import assert_same_weights, changed, losses, pretrain_here

from recon_ray import storage
from recon_ray.cluster import train as progress
from recon_ray.cluster.training_job import _mode_of_epoch
from recon_ray.data.loading.stream_order import StreamLayout
from recon_ray.errors import CheckpointError, ConfigError, StoppedError
from recon_ray.runs import lease as lease_file
from recon_ray.runs.checkpoint import CheckpointStore, expendable, pack
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.journal import Journal, explain_restart, last_record, shortened
from recon_ray.runs.lease import Holder, Lease, LeaseFile
from recon_ray.runs.recorder import read_records, recording_to
from recon_ray.tasks.run import start_run
from recon_ray.train import commits
from recon_ray.train.commits import Commits
from recon_ray.train.feed.indexed import IndexedFeed
from recon_ray.train.stop_request import StopRequest, sigterm_as_stop_request, stop_requested

NAMES = [f"step-{step:08d}" for step in (10, 15, 20, 25, 30)]


class Alone:
    """A runtime of one worker whose stop request the test sets."""

    rank, world_size, attempt, keeps_ledger = 0, 1, "a", False

    def __init__(self, folder: Path, **options) -> None:
        self.folder = RunFolder(str(folder))
        self.folder.local.mkdir(parents=True, exist_ok=True)
        self.store = CheckpointStore(self.folder.checkpoints, **options)
        self.device = torch.device("cpu")
        self.request = StopRequest.NONE
        self.announced: list[str] = []

    def stop_request(self) -> StopRequest:
        request, self.request = self.request, StopRequest.NONE
        return request

    def reason(self) -> str:
        return "for a test"

    def committed(self, name, step, metrics) -> None:
        self.announced.append(name)


def made(runtime: Alone, seconds: float = 1000.0) -> Commits:
    return Commits(runtime, every_seconds=seconds, journal=Journal(runtime.folder))


def store(committed: Commits, step: int, failure: str = "") -> None:
    def packed():
        return pack(
            step, model={"w": torch.ones(2)}, train={"progress": {"step": step}}, architecture={}
        )

    name = f"step-{step:08d}"
    committed.store(packed, name=name, step=step, metrics={}, failure=failure)


# --- What is kept --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({"keep": 2, "every": None, "best": None}, NAMES[:3]),
        ({"keep": 1, "every": 10, "best": None}, ["step-00000015", "step-00000025"]),
        ({"keep": 1, "every": 20, "best": "step-00000015"}, ["step-00000010", "step-00000025"]),
        ({"keep": 9, "every": None, "best": None}, []),
    ],
)
def test_the_last_the_best_and_every_nth_are_kept(options, gone):
    assert expendable(NAMES, **options) == gone


def test_a_run_keeps_the_checkpoint_after_every_n_steps(tmp_path):
    runtime = Alone(tmp_path / "run", keep=1, keep_every=4)
    committed = made(runtime)
    for step in range(1, 11):
        if committed.due(step):
            store(committed, step)
    store(committed, 10)
    assert runtime.store.names() == ["step-00000004", "step-00000008", "step-00000010"]
    assert runtime.announced == ["step-00000004", "step-00000008", "step-00000010"]


def test_what_interrupted_commits_left_is_removed_and_named(tmp_path):
    runtime = Alone(tmp_path / "run")
    store(made(runtime), 3)
    root = tmp_path / "run" / "checkpoints"
    for name in (".tmp-step-00000005", "step-00000006"):
        (root / name).mkdir()
        (root / name / "model.pt").write_text("half")
    (root / "validation_manager_snapshot.json").write_text("{}")
    assert sorted(runtime.store.clean()) == [".tmp-step-00000005", "step-00000006"]
    assert sorted(path.name for path in root.iterdir()) == [
        "step-00000003", "validation_manager_snapshot.json",
    ]  # fmt: skip


# --- When ----------------------------------------------------------------------------------------
def test_the_clock_decides_and_is_not_asked_after_every_step(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(commits.time, "monotonic", lambda: now[0])
    committed = made(Alone(tmp_path / "run"), seconds=60.0)
    asked, decided = [], committed._decide
    monkeypatch.setattr(committed, "_decide", lambda step: asked.append(step) or decided(step))
    due = []
    for step in range(1, 1001):
        now[0] += 0.1
        if committed.due(step):
            due.append(step)
            store(committed, step)
    assert len(asked) < 130  # about one look a second, not one a step
    assert [round(step / 600) for step in due] == [1]
    assert 600 <= due[0] <= 620


def test_a_notice_commits_at_the_next_look_and_is_noted(tmp_path):
    runtime = Alone(tmp_path / "run")
    committed = made(runtime)
    assert not committed.due(1)
    runtime.request = StopRequest.COMMIT
    assert committed.due(2, ask=True)
    assert not committed.stopping
    runtime.request = StopRequest.STOP
    assert committed.due(3, ask=True)
    assert committed.stopping
    kinds = [(event["event"], event["step"]) for event in Journal(runtime.folder).events()]
    assert kinds == [("trains", 1), ("notice", 2), ("notice", 3)]


def test_an_earlier_failure_is_raised_and_nothing_is_stored(tmp_path):
    runtime = Alone(tmp_path / "run")
    with pytest.raises(CheckpointError, match="no space"):
        store(made(runtime), 3, failure="no space")
    assert runtime.store.names() == []


# --- Object stores -------------------------------------------------------------------------------
class SlowStore(CheckpointStore):
    """An object store, as far as one can be had on a disk: no rename, and it takes its time."""

    def __init__(self, uri: str, **options) -> None:
        super().__init__(uri, **options)
        self._fs = pafs.SubTreeFileSystem("/", pafs.LocalFileSystem())
        self.is_local = False
        self.gate = threading.Event()
        self.failures = 0

    def _write(self, path: str, blob: bytes) -> None:
        assert self.gate.wait(30)
        if self.failures:
            self.failures -= 1
            raise OSError(5, "the bucket does not answer")
        super()._write(path, blob)


@pytest.fixture
def remote(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "RETRY_SECONDS", (0.0, 0.0))
    runtime = Alone(tmp_path / "run")
    runtime.store = SlowStore(runtime.folder.checkpoints, keep=2)
    return runtime


def test_training_goes_on_while_an_object_store_is_written(remote):
    committed = made(remote)
    store(committed, 1)  # returns although the gate is shut
    assert remote.announced == []
    assert remote.store.names() == []
    remote.store.gate.set()
    store(committed, 2)
    assert remote.announced == ["step-00000001"]
    committed.finish()
    assert remote.announced == ["step-00000001", "step-00000002"]
    assert remote.store.load_latest().step == 2


def test_after_a_notice_an_object_store_is_waited_for(remote):
    committed = made(remote)
    assert not committed.due(1)
    remote.request = StopRequest.COMMIT
    assert committed.due(2, ask=True)
    threading.Timer(0.2, remote.store.gate.set).start()
    store(committed, 2)
    assert remote.announced == ["step-00000002"]
    assert remote.store.load_latest().step == 2


def test_what_was_packed_does_not_change_while_it_is_written(remote):
    weight = torch.ones(3)
    committed = made(remote)
    committed.store(
        lambda: pack(1, model={"w": weight}, train={}, architecture={}),
        name="step-00000001", step=1, metrics={}, failure="",
    )  # fmt: skip
    weight.fill_(7)
    remote.store.gate.set()
    committed.finish()
    assert remote.store.load_latest().model["w"].tolist() == [1, 1, 1]


def test_an_object_store_that_fails_is_tried_again_and_told_at_the_next_commit(remote, caplog):
    remote.store.gate.set()
    remote.store.failures = 2
    committed = made(remote)
    store(committed, 1)
    committed.finish()
    assert remote.store.load_latest().step == 1
    assert caplog.text.count("trying again") == 2
    remote.store.failures = 3
    store(committed, 2)
    with pytest.raises(CheckpointError, match="the bucket does not answer"):
        store(committed, 3)
    assert remote.store.load_latest().step == 1  # the older one stays


def test_an_object_store_that_cannot_be_listed_is_told_in_a_sentence(remote, monkeypatch):
    def refuse() -> list[str]:
        raise OSError(5, "the bucket does not answer")

    remote.store.gate.set()
    committed = made(remote)
    store(committed, 1)
    committed.finish()
    monkeypatch.setattr(remote.store, "_folders", refuse)
    store(committed, 2)
    committed.finish()  # it is known what is there
    again = SlowStore(remote.store.uri)
    again._folders = refuse
    assert again.load_latest().step == 2
    Path(again.path("recent.json")).unlink()
    with pytest.raises(CheckpointError, match=r"cannot be listed \(.*the bucket does not answer"):
        again.load_latest()
    assert again.clean() == []  # looking for leftovers is no reason to end


# --- The journal ---------------------------------------------------------------------------------
def explain(*events: dict, attempt: str = "a", step: int = 5, last: int = 9):
    return explain_restart(events, attempt=attempt, step=step, last_step=last, idle_since=None)


TRAINS = {"event": "trains", "workers": 2, "attempt": "a"}


@pytest.mark.parametrize(
    ("since", "attempt", "reason"),
    [
        ([], "a", "the cluster has other resources"),
        (
            [{"event": "failed", "reason": "rank 1: it died"}],
            "a",
            "a worker failed: rank 1: it died",
        ),
        (
            [{"event": "notice", "reason": "1 of its nodes will leave"}, {"event": "failed"}],
            "a",
            "1 of its nodes will leave",
        ),
        ([], "b", "the job was submitted again"),
        ([{"event": "stopped", "reason": "by SIGTERM"}], "b", "it was stopped, by SIGTERM"),
        ([{"event": "done"}], "b", "it had ended, and has more to do"),
    ],
)
def test_every_restart_has_a_reason(since, attempt, reason):
    found = explain(TRAINS, *since, attempt=attempt)
    assert (found.reason, found.workers_before, found.repeated) == (reason, 2, 4)
    assert found.describe(1) == (
        f"training on 1 worker instead of 2, 4 steps are done again ({reason})"
    )


def test_a_failure_is_told_by_its_last_line_and_a_first_start_needs_no_reason():
    lost = "Traceback\n  x\nRuntimeError: [gloo/pair.cc:561] Connection closed by peer [::1]:2\n"
    assert shortened(lost) == "it lost the connection to another worker"
    assert shortened("Traceback\n  File x\nValueError: no\n\n") == "ValueError: no"
    assert len(shortened("x" * 1000)) == 303
    assert explain() is None


def test_half_a_line_of_the_journal_is_left_out(tmp_path):
    journal = Journal(RunFolder(str(tmp_path)))
    journal.add("trains", step=1)
    with (tmp_path / "events.jsonl").open("ab") as stream:
        stream.write(b'\xff\n{"event": "fai')
    assert [event["event"] for event in journal.events()] == ["trains"]
    journal.add("submitted")
    journal.add("trains")
    assert [event["event"] for event in journal.events()] == ["trains", "submitted", "trains"]


def test_cut_off_and_damaged_lines_of_the_records_are_left_out(tmp_path):
    folder = RunFolder(str(tmp_path))
    assert last_record(folder) == (0, None)
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n{"step": 4}\n{"ste')
    step, written = last_record(folder)
    assert step == 4
    assert abs(written - time.time()) < 60
    (tmp_path / "metrics.jsonl").write_bytes(DAMAGED)
    assert last_record(folder)[0] == 3
    assert progress.last_record(tmp_path / "metrics.jsonl")["train/loss"] == 1.5
    assert [record["step"] for record in read_records(folder)] == [3]


DAMAGED = b'{"step": 3, "epoch": 1, "train/loss": 1.5}\n\xff\x00\n[1]\n7\n{"epoch": 1}\n'


# --- One job at a time ---------------------------------------------------------------------------
HOLD = """
import sys, time
from recon_ray.runs.lease import Lease
lease = Lease(sys.argv[1], "run")
lease.take()
print("taken", flush=True)
time.sleep(100)
"""


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """Run a process that holds the folder, and kill it without a chance to release it."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "taken\n"
            yield process.pid
        finally:
            process.kill()


def elsewhere(folder: Path, **changes) -> Holder:
    """The lease of a job on another machine."""
    holder = Holder("key", "node7", "another machine", 4711, "1", **changes)
    (folder / "lease.json").write_text(json.dumps(vars(holder)))
    return holder


def test_a_run_that_another_process_runs_is_refused_until_that_has_ended(tmp_path):
    with held(tmp_path) as pid:
        lease = Lease(str(tmp_path), "run")
        with pytest.raises(ConfigError, match=rf"run.name=run: process {pid} on .* now"):
            lease.check()
    lease = Lease(str(tmp_path), "run")
    lease.take()
    assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()
    lease.release()
    assert not (tmp_path / "lease.json").exists()


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr("recon_ray.runs.lease.PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr("recon_ray.runs.lease.BEAT_SECONDS", 0.05)


@pytest.mark.usefixtures("_impatient")
def test_the_silence_of_another_machine_ends_its_lease_and_a_beat_keeps_it(tmp_path, monkeypatch):
    elsewhere(tmp_path)
    lease, started = Lease(str(tmp_path), "run"), time.monotonic()
    lease.check()
    waited = time.monotonic() - started
    assert waited > 0.4
    monkeypatch.setattr("recon_ray.runs.lease.PATIENCE_SECONDS", 20.0)
    lease.take()
    assert time.monotonic() - started < waited + 15  # it is not watched twice
    lease.release()
    elsewhere(tmp_path)
    threading.Timer(0.2, elsewhere, (tmp_path,), {"beat": 1}).start()
    with pytest.raises(ConfigError, match=r"process 4711 on node7 is running it now"):
        Lease(str(tmp_path), "run").check()


@pytest.mark.usefixtures("_impatient")
def test_a_holder_counts_up_and_ends_where_it_was_taken_over(tmp_path):
    lease = Lease(str(tmp_path), "run")
    lease.take()
    for _ in range(100):
        if json.loads((tmp_path / "lease.json").read_text())["beat"] > 2:
            break
        time.sleep(0.05)
    else:
        pytest.fail("it does not count")
    with sigterm_as_stop_request():
        for _ in range(50):  # the holder may just be writing
            elsewhere(tmp_path)
            if stop_requested().wait(0.2):
                break
        else:
            pytest.fail("it does not notice")
    lease.release()
    assert (tmp_path / "lease.json").exists()  # it is the other one's


def test_a_run_that_failed_lets_the_next_one_begin(tmp_path, tiny_config):
    run = start_run("pretrain", tiny_config, label="x")
    path = run.folder.local / "lease.json"
    assert path.exists()
    del run
    assert not path.exists()


def test_a_beat_that_is_being_written_does_not_bring_a_released_lease_back(tmp_path, monkeypatch):
    monkeypatch.setattr("recon_ray.runs.lease.BEAT_SECONDS", 0.01)
    write, begun = LeaseFile.write, threading.Event()

    def slowly(file: LeaseFile, holder: Holder) -> None:
        if holder.beat:
            begun.set()
            time.sleep(0.3)
        write(file, holder)

    monkeypatch.setattr(LeaseFile, "write", slowly)
    lease = Lease(str(tmp_path), "run")
    lease.take()
    assert begun.wait(10)
    lease.release()
    for thread in threading.enumerate():
        if thread.name == "lease":
            thread.join(10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_impatient")
def test_without_proc_the_silence_of_a_dead_process_ends_its_lease(tmp_path, monkeypatch):
    monkeypatch.setattr("recon_ray.runs.lease.PROC", tmp_path / "absent")
    holder = Holder("key", socket.gethostname(), socket.gethostname(), os.getppid(), "")
    (tmp_path / "lease.json").write_text(json.dumps(vars(holder)))
    lease = Lease(str(tmp_path), "run")
    lease.take()  # after it has been watched
    assert json.loads((tmp_path / "lease.json").read_text())["key"] != "key"
    lease.release()
    (tmp_path / "lease.json").write_text(json.dumps(vars(holder)))
    beats = {**vars(holder), "beat": 1}
    threading.Timer(0.2, (tmp_path / "lease.json").write_text, (json.dumps(beats),)).start()
    with pytest.raises(ConfigError, match="is running it now"):
        Lease(str(tmp_path), "run").check()


def test_a_process_that_proc_hides_from_this_user_is_not_taken_for_dead(tmp_path, monkeypatch):
    with held(tmp_path) as pid:
        born = lease_file._born
        monkeypatch.setattr(lease_file, "_born", lambda p: "" if p == pid else born(p))
        with pytest.raises(ConfigError, match="is running it now"):
            Lease(str(tmp_path), "run").check()


def test_a_lease_that_another_job_has_taken_after_the_look_stays_its_own(tmp_path):
    file = LeaseFile(str(tmp_path))
    dead, faster, slower = (
        Holder(key, "here", "machine", 1, "1") for key in ("dead", "faster", "slower")
    )
    file.write(dead)
    assert file.create(faster, dead)
    assert not file.create(slower, dead)
    assert not file.create(slower, None)
    assert file.read() == faster
    assert [path.name for path in tmp_path.iterdir()] == ["lease.json"]


def test_a_lease_that_is_damaged_or_cannot_be_written_is_not_taken_for_another_jobs(
    tmp_path, monkeypatch
):
    (tmp_path / "lease.json").write_text("{")
    Lease(str(tmp_path), "run").check()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("recon_ray.runs.lease.json.dumps", refuse)
    with pytest.raises(CheckpointError, match=r"lease\.json: it could not be written \(No space"):
        Lease(str(tmp_path), "run").take()


# --- A whole run ---------------------------------------------------------------------------------
def terminate(step: int, *_: object) -> None:
    if step == 5:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("mode", ["shared", "stream"])
def test_sigterm_commits_and_the_run_goes_on_as_if_nothing_had_been(
    tiny_config, tiny_prepared, mode
):
    data = {"mode": mode, "shuffle_buffer": 8}
    config = changed(tiny_config, eval={"enabled": False}, train={"ledger": True}, data=data)
    _, whole = pretrain_here(changed(config, run={"name": "whole"}), tiny_prepared)
    with sigterm_as_stop_request(), recording_to(terminate), pytest.raises(StoppedError) as stopped:
        pretrain_here(changed(config, run={"name": "part"}), tiny_prepared)
    assert stopped.value.exit_code == 143
    metrics, part = pretrain_here(changed(config, run={"name": "part"}), tiny_prepared)
    assert metrics["steps"] == 12
    assert losses(part) == losses(whole)
    assert_same_weights(part, whole)
    events = Journal(RunFolder(str(part))).events()
    assert [event["event"] for event in events] == ["trains", "notice", "stopped", "trains", "done"]
    assert events[3]["reason"] == "it was stopped, by SIGTERM"
    assert events[3]["repeated"] == 0
    tables = [pq.read_table(folder / "ledger.parquet") for folder in (part, whole)]
    assert tables[0].equals(tables[1])
    assert tables[0]["uses"].to_pylist() == [1] * 12 * 8


def test_an_epoch_ends_as_it_was_begun(tiny_config, tiny_prepared, monkeypatch):
    config = changed(tiny_config, eval={"enabled": False}, train={"steps": 4})
    pretrain_here(config, tiny_prepared)
    monkeypatch.setattr(IndexedFeed, "layout", lambda feed, epoch: StreamLayout(1, 8))
    with pytest.raises(ConfigError, match=r"data.mode: epoch 2 was begun .* by index .* twice"):
        pretrain_here(changed(config, train={"steps": 5}), tiny_prepared)


@pytest.mark.parametrize(
    ("progress", "order", "mode"),
    [
        ({"step_in_epoch": 2}, {"tracks_samples": True}, "stream"),  # of an older version
        ({"samples_in_epoch": 8}, {"tracks_samples": False}, "shared"),
        ({"samples_in_epoch": 8}, {"stream": [4, 2048]}, "stream"),
        ({"samples_in_epoch": 8}, {"stream": None}, "shared"),
        ({"samples_in_epoch": 0}, {"stream": [4, 2048]}, None),
    ],
)
def test_auto_takes_the_mode_of_an_epoch_that_is_half_done(tmp_path, progress, order, mode):
    store = CheckpointStore(str(tmp_path))
    train = {"progress": progress, "global_batch_size": 4, **order}
    store.write(pack(1, model={}, train=train, architecture={}))
    assert _mode_of_epoch(str(tmp_path)) == mode


def test_a_second_job_of_the_name_is_refused_and_moves_nothing(tmp_path, tiny_config):
    folder = Path(tiny_config.run.storage) / "run"
    folder.mkdir(parents=True)
    with held(folder):
        for resume in ("auto", "never"):
            with pytest.raises(ConfigError, match="is running it now"):
                start_run("pretrain", tiny_config, label="x", resume=resume)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["run"]
    assert sorted(path.name for path in folder.iterdir()) == ["lease.json"]


# --- A whole run on an object store that lies in this process's memory ----------------------------
class _Filesystems:
    """pyarrow.fs with one more scheme, ``memory://``, which fsspec keeps."""

    class FileSystem:
        @staticmethod
        def from_uri(uri: str):
            scheme, _, path = uri.partition("://")
            if scheme != "memory":
                return pafs.FileSystem.from_uri(uri)
            handler = pafs.FSSpecHandler(fsspec.filesystem("memory"))
            return pafs.PyFileSystem(handler), f"/{path}"

    def __getattr__(self, name: str):
        return getattr(pafs, name)


def test_records_are_sent_to_an_object_store_again_when_it_refuses(monkeypatch, caplog):
    monkeypatch.setattr(storage, "pafs", _Filesystems())
    monkeypatch.setattr(storage, "RETRY_SECONDS", (0.0, 0.0))
    failures = [OSError(5, "the bucket does not answer")] * 2
    copy = pafs.copy_files

    def refuse(*places: object) -> None:
        if failures:
            raise failures.pop()
        copy(*places)

    monkeypatch.setattr(pafs, "copy_files", refuse)
    folder = RunFolder("memory://bucket/sent")
    folder.write("a.txt", "x")
    assert folder.read("a.txt") == "x"
    assert caplog.text.count("trying again") == 2
    failures += [OSError(5, "the bucket does not answer")] * 3
    (folder.local / "b.txt").write_text("y")
    with pytest.raises(CheckpointError, match="see that the storage can be reached and written"):
        folder.publish()


def test_a_run_on_an_object_store_stops_and_goes_on_there(tiny_config, tiny_prepared, monkeypatch):
    monkeypatch.setattr(storage, "pafs", _Filesystems())
    memory = fsspec.filesystem("memory")
    options = {"eval": {"enabled": False}, "train": {"ledger": True, "keep_checkpoints": 1}}
    config = changed(tiny_config, **options)
    _, whole = pretrain_here(changed(config, run={"name": "whole"}), tiny_prepared)
    there = changed(config, run={"name": "part", "storage": "memory://bucket/runs"})
    with sigterm_as_stop_request(), recording_to(terminate), pytest.raises(StoppedError):
        pretrain_here(there, tiny_prepared)
    metrics, _ = pretrain_here(there, tiny_prepared)
    assert metrics["steps"] == 12
    root = "/bucket/runs/part"
    names = {name.removeprefix(root) for name in memory.find(root)}
    assert names >= {
        "/metrics.jsonl", "/events.jsonl", "/ledger.parquet", "/config.yaml",
        "/checkpoints/step-00000012/MANIFEST.json",
    }  # fmt: skip
    assert not any("step-00000006" in name for name in names)  # one checkpoint is kept
    records = map(json.loads, memory.cat(f"{root}/metrics.jsonl").decode().splitlines())
    assert [r["train/loss"] for r in records if "train/loss" in r] == losses(whole)
    events = [
        json.loads(line)["event"]
        for line in memory.cat(f"{root}/events.jsonl").decode().splitlines()
    ]
    assert events == ["trains", "notice", "stopped", "trains", "done"]
    table = pq.read_table(io.BytesIO(memory.cat(f"{root}/ledger.parquet")))
    assert table["uses"].to_pylist() == [1] * 12 * 8
