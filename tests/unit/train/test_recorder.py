import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recon_ray.train.recorder import Recorder


def _records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_same_numbers_go_to_the_file_and_to_tensorboard(tmp_path):
    recorder = Recorder(tmp_path, start_step=0)
    recorder.write(1, 0, {"train/loss": 2.0})
    recorder.write(2, 0, {"train/loss": 1.5})
    recorder.close()
    assert [record["train/loss"] for record in _records(tmp_path)] == [2.0, 1.5]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(s.step, s.value) for s in board.Scalars("train/loss")] == [(1, 2.0), (2, 1.5)]


def test_a_continued_run_drops_what_came_after_its_checkpoint_and_half_written_lines(tmp_path):
    recorder = Recorder(tmp_path, start_step=0)
    for step in (1, 2, 3):
        recorder.write(step, 0, {"train/loss": float(step)})
    recorder.close()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "trai')
    recorder = Recorder(tmp_path, start_step=2)
    recorder.write(3, 0, {"train/loss": 9.0})
    recorder.close()
    assert [record["train/loss"] for record in _records(tmp_path)] == [1.0, 2.0, 9.0]


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    recorder = Recorder(tmp_path, start_step=0)
    recorder.write(1, 0, {"train/loss": float("nan")})
    recorder.close()
    assert _records(tmp_path)[0]["train/loss"] is None
