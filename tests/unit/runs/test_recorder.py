import errno
import json
import time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recon_ray.runs.folder import RunFolder
from recon_ray.runs.recorder import Recorder, recording_to


def _records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _record(folder, start, *rows):
    recorder = Recorder(RunFolder(str(folder)), start_step=start)
    for step, value in rows:
        recorder.write(step, 0, {"train/loss": value})
    recorder.close()
    return recorder


def test_the_same_numbers_go_to_the_file_and_to_tensorboard(tmp_path):
    _record(tmp_path, 0, (1, 2.0), (2, 1.5))
    assert [record["train/loss"] for record in _records(tmp_path)] == [2.0, 1.5]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(s.step, s.value) for s in board.Scalars("train/loss")] == [(1, 2.0), (2, 1.5)]


def test_a_continued_run_drops_what_came_after_its_checkpoint_and_half_written_lines(tmp_path):
    _record(tmp_path, 0, (1, 1.0), (2, 2.0), (3, 3.0))
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "trai')
    _record(tmp_path, 2, (3, 9.0))
    assert [record["train/loss"] for record in _records(tmp_path)] == [1.0, 2.0, 9.0]


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    _record(tmp_path, 0, (1, float("nan")))
    assert _records(tmp_path)[0]["train/loss"] is None


def test_a_run_that_starts_anew_keeps_no_record_of_an_attempt_without_checkpoint(tmp_path):
    recorder = Recorder(RunFolder(str(tmp_path)), start_step=0)
    recorder.write(0, 0, {"val/accuracy": 0.1})
    recorder.write(1, 0, {"train/loss": 2.0})
    recorder.close()
    recorder = Recorder(RunFolder(str(tmp_path)), start_step=0)
    recorder.write(0, 0, {"val/accuracy": 0.1})
    recorder.close()
    assert [record["step"] for record in _records(tmp_path)] == [0]


def test_what_cannot_be_written_is_noted_once_and_does_not_raise(tmp_path, monkeypatch):
    recorder = Recorder(RunFolder(str(tmp_path)), start_step=0)
    recorder.write(1, 0, {"train/loss": 2.0})
    assert recorder.failure == ""

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", refuse)
    recorder.write(2, 0, {"train/loss": 1.0})
    noted = recorder.failure
    recorder.write(3, 0, {"train/loss": 1.0})
    recorder.close()
    assert recorder.failure == noted
    assert "metrics.jsonl: the metrics could not be written (No space left on device)" in noted


def test_a_folder_that_cannot_be_made_is_noted(tmp_path):
    (tmp_path / "file").write_text("")
    assert "(Not a directory)" in _record(tmp_path / "file" / "run", 0, (1, 2.0)).failure


def test_a_listener_is_told_of_every_record_while_it_listens(tmp_path: Path) -> None:
    heard: list[tuple[int, int, dict[str, float]]] = []
    recorder = Recorder(RunFolder(str(tmp_path)), start_step=0)
    with recording_to(lambda step, epoch, values: heard.append((step, epoch, dict(values)))):
        recorder.write(3, 1, {"train/loss": 0.5})
    recorder.write(4, 1, {"train/loss": 0.4})
    recorder.close()
    assert heard == [(3, 1, {"train/loss": 0.5})]


def test_a_continued_run_purges_later_events_of_the_attempt_before(tmp_path):
    for start, loss in ((0, 1.0), (2, 9.0)):
        _record(tmp_path, start, *((step, loss) for step in range(start + 1, 4)))
        time.sleep(1.1)  # TensorBoard reads the files in the order of their names
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [(s.step, s.value) for s in board.Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 1.0), (3, 9.0)]


def test_a_record_can_be_seen_in_tensorboard_at_once(tmp_path):
    recorder = Recorder(RunFolder(str(tmp_path)), start_step=0)
    recorder.write(1, 0, {"train/loss": 2.0})
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [s.step for s in board.Scalars("train/loss")] == [1]
    recorder.close()
