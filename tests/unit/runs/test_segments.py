"""Growing files of a run on an object store: sent in segments, read whole, continued at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recon_ray.benchmarks.counted_store import CountedStore
from recon_ray.benchmarks.scale_run import place_on
from recon_ray.runs import jsonl, recorder, segments
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.journal import Journal, last_record
from recon_ray.runs.recorder import Recorder, read_records

ROOT = "/bucket/run"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> CountedStore:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 200)
    monkeypatch.setattr(recorder, "RECORDS_A_FILE", 5)
    return CountedStore()


@pytest.fixture
def attempt(store: CountedStore, tmp_path: Path) -> Callable[[], RunFolder]:
    """A process that opens the run's folder anew; nothing is left of the local part before."""
    count = iter(range(100))

    def new() -> RunFolder:
        folder = RunFolder(str(tmp_path / f"attempt{next(count)}"))
        folder.local.mkdir()
        place_on(store, folder, ROOT)
        return folder

    return new


def record(folder: RunFolder, first: int, last: int, *, start: int, loss: float = 1.0) -> None:
    """Write the records of some steps, with a commit after each."""
    with_steps = Recorder(folder, start_step=start)
    for step in range(first, last + 1):
        with_steps.write(step, 0, {"train/loss": loss})
        folder.publish()
    with_steps.close()
    assert with_steps.failure == ""


def steps(folder: RunFolder) -> list[int]:
    return [one["step"] for one in read_records(folder)]


def names(store: CountedStore, start: str = "metrics") -> list[str]:
    found = (Path(path).name for path in store.fs.find(ROOT))
    return sorted(name for name in found if name.startswith(start))


def test_a_short_file_is_one_object_and_a_long_one_several_that_are_sent_once(store, attempt):
    record(attempt(), 1, 3, start=0)
    assert names(store) == ["metrics.jsonl"]
    folder = attempt()
    record(folder, 4, 40, start=3)
    assert len(names(store)) > 5
    assert steps(folder) == steps(attempt()) == [*range(1, 41)]
    first = store.fs.cat(f"{ROOT}/metrics.jsonl")
    assert 200 <= len(first) < 300
    assert all(json.loads(line)["step"] for line in first.decode().splitlines())
    store.taken()
    folder.publish()
    assert store.taken() == {"requests": 0, "read": 0, "write": 0}


@pytest.mark.parametrize("start", [40, 38, 21, 4, 1])
def test_a_continued_run_drops_later_records_and_reads_the_end_only(store, attempt, start):
    record(attempt(), 1, 40, start=0)
    size = sum(map(store.fs.size, store.fs.glob(f"{ROOT}/metrics*")))
    store.taken()
    folder = attempt()
    assert last_record(folder) == (40, None)
    record(folder, start + 1, 44, start=start, loss=9.0)
    assert start < 30 or store.taken()["read"] < size / 2
    assert steps(attempt()) == [*range(1, 45)]
    losses = [one["train/loss"] for one in read_records(attempt())]
    assert losses == [1.0] * start + [9.0] * (44 - start)


def test_a_run_that_starts_anew_leaves_no_segment_of_an_attempt_without_checkpoint(store, attempt):
    record(attempt(), 1, 40, start=0)
    record(attempt(), 1, 2, start=0)
    assert names(store) == ["metrics.jsonl"]
    assert steps(attempt()) == [1, 2]


def test_one_long_object_of_an_older_version_goes_on(store, attempt):
    lines = [json.dumps({"step": step, "train/loss": 1.0}) for step in range(1, 41)]
    store.fs.pipe(f"{ROOT}/metrics.jsonl", "".join(f"{line}\n" for line in lines).encode())
    record(attempt(), 41, 60, start=40)
    assert len(names(store)) > 2
    record(attempt(), 31, 50, start=30)
    record(attempt(), 51, 52, start=50)
    assert steps(attempt()) == [*range(1, 53)]


def test_tensorboard_goes_on_in_new_files_and_shows_every_record(store, attempt, tmp_path):
    record(attempt(), 1, 12, start=0)
    record(attempt(), 13, 14, start=12)
    found = names(store, "events.out")
    assert len(found) == 4
    for path in store.fs.glob(f"{ROOT}/tensorboard/*"):
        (tmp_path / Path(path).name).write_bytes(store.fs.cat(path))
    board = EventAccumulator(str(tmp_path)).Reload()
    assert [one.step for one in board.Scalars("train/loss")] == [*range(1, 15)]


def test_events_are_added_by_several_processes_and_read_whole_or_from_the_end(store, attempt):
    for step in range(20):
        Journal(attempt()).add("trains", step=step)
    assert len(names(store, "events.jsonl")) == 5
    journal = Journal(attempt())
    assert [event["step"] for event in journal.events()] == [*range(20)]
    recent = [event["step"] for event in journal.recent("trains")]
    assert recent == [*range(20)][-len(recent) :]
    assert 0 < len(recent) < 10


def test_a_folder_on_a_disk_is_cut_at_its_end_without_reading_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "END_BYTES", 100)
    folder = RunFolder(str(tmp_path))
    record(folder, 1, 40, start=0)
    path = tmp_path / "metrics.jsonl"
    with path.open("r+b") as stream:  # what is not read may be anything
        stream.write(b"#" * 20)
    with path.open("ab") as stream:
        stream.write(b'{"step": 41, "trai')
    assert last_record(folder)[0] == 40
    record(folder, 36, 37, start=35)
    assert path.read_bytes().startswith(b"#" * 20)
    assert steps(folder) == [*range(2, 38)]
    assert [path.name for path in tmp_path.glob("metrics*")] == ["metrics.jsonl"]
