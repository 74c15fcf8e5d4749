"""Runs that are not continued, and checkpoints that a run cannot start from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from job_runs import QUICK, Jobs, file_tree, flip, prepare_again

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.runs.checkpoint import CheckpointStore


def test_a_run_of_another_or_damaged_configuration_is_not_continued(
    jobs: Jobs, finished: Path
) -> None:
    before = file_tree(finished)
    outcome = jobs.pretrain(*QUICK, "optim.lr=0.5", "train.epochs=9", "train.log_every_steps=7")
    outcome.refused(
        2,
        r"run\.name=run: .*runs/run holds a run with another configuration "
        r"\(optim\.lr: 0\.001 then, 0\.5 now; train\.epochs: 4 then, 9 now\); choose another run\.n"
        r"ame, or resume=never to set it aside$",
    )
    assert file_tree(finished) == before
    (finished / "config.yaml").write_text("train: [")
    jobs.pretrain(*QUICK).refused(1, r"run/config\.yaml: it is damaged, .*choose another run\.name")


@pytest.mark.parametrize("known_by", ["environment.json", "result.json"])
def test_a_run_of_another_job_is_neither_continued_nor_set_aside(
    jobs: Jobs, finished: Path, known_by: str, tiny_prepared: PreparedSet
) -> None:
    given = "run.name=run", f"init_from={finished}", f"data.path={tiny_prepared.path}"
    other = {"environment.json": "result.json", "result.json": "environment.json"}[known_by]
    (finished / other).unlink()
    before = file_tree(jobs.runs)
    refusal = r"run\.name=run: .*/runs/run holds a run of jobs/pretrain\.py; choose another run\.n"
    jobs.finetune(*given).refused(2, refusal)
    jobs.run("visualize", *given, "data.num_points=64").refused(2, refusal)
    assert file_tree(jobs.runs) == before


def test_a_run_is_not_continued_with_other_teachers(jobs: Jobs, finished: Path) -> None:
    teachers = json.loads((finished / "teachers.json").read_text())
    teachers["text"]["sha256"] = "0" * 64
    (finished / "teachers.json").write_text(json.dumps(teachers))
    before = file_tree(finished)
    jobs.pretrain(*QUICK).refused(1, r"teacher\.text\.name: this run was started with .*'0000")
    assert file_tree(finished) == before
    (finished / "teachers.json").write_text("{")
    jobs.pretrain(*QUICK).refused(1, r"run/teachers\.json: it is damaged; choose another run\.name")


def test_a_run_is_not_continued_on_a_set_that_was_prepared_again(jobs: Jobs, copy: Path) -> None:
    given = (*QUICK, f"data.path={copy}")
    jobs.pretrain(*given).done()
    run = jobs.runs / "run"
    assert json.loads((run / "inputs.json").read_text()) == {
        "data.path": PreparedSet.open(copy).manifest_hash
    }
    before = file_tree(run)
    jobs.pretrain(*given).done()  # the same content is gone on with
    before |= file_tree(run)
    kept = (copy / "_manifest.json").read_text()
    prepare_again(copy)
    jobs.pretrain(*given).refused(
        2,
        r"data\.path=.*/copy: the set is no longer what .*runs/run was begun with .*; put back what"
        r" was there, or choose another run\.name, or resume=never to set this run aside$",
    )
    assert file_tree(run) == before
    (copy / "_manifest.json").write_text(kept)
    jobs.pretrain(*given).done()
    prepare_again(copy)
    jobs.pretrain(*given, "resume=never").done()
    (run / "inputs.json").write_text("[")
    jobs.pretrain(*given).refused(1, r"run/inputs\.json: it is damaged; choose another run\.name")


def test_a_run_is_not_continued_from_weights_that_were_trained_again(
    jobs: Jobs, finished: Path, tiny_prepared: PreparedSet
) -> None:
    start = (f"data.path={tiny_prepared.path}", f"init_from={finished}")
    jobs.finetune(*start).done()
    tuned = jobs.runs / "tuned"
    vote = (
        f"data.path={tiny_prepared.path}", f"init_from={tuned}", "run.name=voted", "eval.votes=2",
    )  # fmt: skip
    jobs.evaluate(*vote).done()
    before = (tuned / "result.json").read_text()
    jobs.pretrain(*QUICK, "resume=never", "run.seed=4").done()
    jobs.finetune(*start).refused(
        2, r"init_from=.*runs/run: the weights are no longer what .*runs/tuned was begun with"
    )
    assert (tuned / "result.json").read_text() == before
    jobs.evaluate(*vote).done()
    jobs.finetune(*start, "resume=never").done()
    jobs.evaluate(*vote).refused(2, r"init_from=.*runs/tuned: the weights are no longer what")


def test_a_run_with_only_damaged_checkpoints_is_not_begun_anew(jobs: Jobs, finished: Path) -> None:
    flip(finished / "checkpoints" / "step-00000001" / "model.pt", 500)
    jobs.pretrain("train.steps=2", "eval.enabled=false").refused(
        1, r"run/checkpoints: all 1 checkpoints are damaged; restore one from a copy, or start afre"
    )


def test_a_checkpoint_to_start_from_has_to_be_one_and_to_fit(jobs: Jobs, finished: Path) -> None:
    checkpoint = finished / "checkpoints" / "step-00000001"
    moved = shutil.copytree(checkpoint, jobs.folder / "my-checkpoint")
    shutil.rmtree(jobs.runs)
    resume = f"resume={moved}"
    cases = {
        f"{resume} model.embed_dim=32": r"-checkpoint: encoder\.\w+ has shape .*24.*, the configur",
        f"{resume} model.depth=3": r"-checkpoint: it does not fit the configured model \(missing: ",
        f"{resume} teacher.text.name=null": r"does not fit the configured model .*text_proj",
        f"resume={jobs.folder}": r"resume=.*: no checkpoint there; give a run folder or a checkp",
        f"{resume}/model.pt": r"model\.pt: (no checkpoint there|it cannot be reached)",
    }
    for options, message in cases.items():
        jobs.pretrain("run.name=new", *options.split()).refused(2, message)
        assert jobs.left_behind() == []
    log = jobs.pretrain("run.name=new", resume, "train.steps=2", "eval.enabled=false").done()
    assert "(step 1)" in log  # whatever the folder is called
    assert CheckpointStore(str(jobs.runs / "new" / "checkpoints")).names()[-1] == "step-00000002"
    log = jobs.pretrain("run.name=new", resume, "train.steps=2", "eval.enabled=false").done()
    assert f"the run has checkpoints of its own, {moved} is not read again" in log


def test_a_place_that_cannot_be_gone_on_from_is_refused(jobs: Jobs, finished: Path) -> None:
    """It lies 8 of 24 shapes inside the first epoch."""
    start = ("run.name=new", f"resume={finished}", "eval.enabled=false")
    cases = {
        "train.global_batch_size=12": r"batch_size=12: resume=.* lies 8 shapes inside epoch 1 \(in",
        "data.limit=16": r"resume=.* epoch 1, .* \(24 training shapes then, 16 now: data\.limit",
        "data.train_splits=[test] data.limit=null": r"24 training shapes then, 12 now",
        "run.seed=4": r"run\.seed=3 then, 4 now",
        "train.steps=1": r"train\.steps=1: nothing is left to train, as resume=.* has 1 steps",
    }
    before = file_tree(jobs.runs)
    for options, message in cases.items():
        jobs.pretrain(*start, *options.split()).refused(2, message)
        assert file_tree(jobs.runs) == before
    jobs.pretrain("train.steps=2", "eval.enabled=false").done()
    jobs.pretrain(*QUICK).refused(2, r"train\.steps=1: nothing is left .*-00000002 has 2 steps beh")
    result = json.loads((finished / "result.json").read_text())
    assert result["counts"]["steps"] == 2
    jobs.pretrain("train.steps=2", "eval.enabled=false").done()  # which makes its result again


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_run_goes_on_from_another_one_shape_by_shape(
    jobs: Jobs, finished: Path, size: int
) -> None:
    """Eight of the 24 shapes are used, in the folder of a run that has been moved since."""
    place = finished.rename(jobs.folder / "moved")
    start = (f"resume={place}", f"train.global_batch_size={size}", "train.ledger=true")
    jobs.pretrain("run.name=new", *start, "eval.enabled=false", "train.epochs=2").done()
    table = pq.read_table(jobs.runs / "new" / "ledger.parquet").to_pylist()
    uses = {epoch: [r["uses"] for r in table if r["epoch"] == epoch] for epoch in (0, 1)}
    assert uses == {0: [1] * 16, 1: [1] * 24}
    result = json.loads((jobs.runs / "new" / "result.json").read_text())
    assert result["counts"]["steps"] == 2 * 24 / size


def test_a_renamed_or_copied_run_is_continued_under_its_new_name(
    jobs: Jobs, finished: Path, copy: Path, tiny_prepared: PreparedSet
) -> None:
    shutil.copytree(finished, jobs.runs / "copied")
    finished.rename(jobs.runs / "renamed")
    for name in ("copied", "renamed"):
        moved = f"data.path={copy}"  # the same content in another place
        log = jobs.pretrain(f"run.name={name}", moved, "train.steps=2", "eval.enabled=false").done()
        assert "(step 1)" in log
        assert yaml.safe_load((jobs.runs / name / "config.yaml").read_text())["run"]["name"] == name
    assert CheckpointStore(str(jobs.runs / "renamed" / "checkpoints")).names() == [
        "step-00000001", "step-00000002",
    ]  # fmt: skip


def test_a_finished_run_without_its_optimizer_is_measured_and_not_trained_on(
    jobs: Jobs, tiny_prepared: PreparedSet
) -> None:
    data = f"data.path={tiny_prepared.path}"
    jobs.finetune(data, "train.keep_optimizer=false").done()
    tuned = jobs.runs / "tuned"
    files = [path.name for path in (tuned / "checkpoints" / "step-00000001").iterdir()]
    assert sorted(files) == ["MANIFEST.json", "model.pt", "progress.pt"]
    result = json.loads((tuned / "result.json").read_text())["metrics"]
    (tuned / "result.json").unlink()
    jobs.finetune(data, "train.keep_optimizer=false").done()  # the same command makes its result
    again = json.loads((tuned / "result.json").read_text())["metrics"]
    assert again["accuracy"] == result["accuracy"]
    jobs.evaluate(data, f"init_from={tuned}", "run.name=measured").done()
    jobs.finetune(data, f"init_from={tuned}", "run.name=on").done()
    dropped = r"its optimizer state was dropped .* start from its weights \(init_from\), or"
    jobs.finetune(data, "train.steps=2").refused(2, f"step-00000001: {dropped}")
    jobs.finetune(data, "run.name=new", f"resume={tuned}", "train.steps=2").refused(2, dropped)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: flip(path / "train.pt", 500), r"resume=.*train\.pt is damaged"),
        (lambda path: (path / "train.pt").unlink(), r"resume=.*train\.pt cannot be read"),
        (lambda path: (path / "MANIFEST.json").write_text("{"), r"MANIFEST\.json cannot be read"),
        (lambda path: (path / "MANIFEST.json").write_text("{}"), r"checkpoint format None, this v"),
        (
            lambda path: (path / "MANIFEST.json").write_text('{"format": 1}'),
            r"MANIFEST\.json: it does not list a whole checkpoint \(step, architecture, files\)",
        ),
    ],
)
def test_a_damaged_checkpoint_to_start_from_is_status_1(
    jobs: Jobs, finished: Path, damage: Callable[[Path], object], message: str
) -> None:
    moved = shutil.copytree(finished / "checkpoints" / "step-00000001", jobs.folder / "step-1")
    shutil.rmtree(jobs.runs)
    damage(moved)
    jobs.pretrain("run.name=new", f"resume={moved}").refused(1, f"{message}.*; give another check")
    assert jobs.left_behind() == []
