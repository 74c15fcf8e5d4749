"""Sweeps and tables of results that are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from job_runs import Jobs, prepare_again

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.procedural.synthetic import SyntheticSource


def test_trials_are_not_counted_for_a_set_prepared_again(jobs: Jobs, copy: Path) -> None:
    options = (
        f"config.data.path={copy}", "config.data.num_points=64", "config.model.preset=nano",
        "config.model.embed_dim=24", "config.model.num_heads=2", "config.model.depth=1",
        "config.model.num_groups=8", "config.model.group_size=8", "config.train.steps=1",
        "config.train.global_batch_size=8",
    )  # fmt: skip
    jobs.sweep(*options, "sweep.seeds=2").done()
    prepare_again(copy)
    jobs.sweep(*options, "sweep.seeds=2").refused(
        2, r"config\.data\.path=.*/copy: the set is no longer what .*/trials/\S+ was begun with"
    )
    assert len(list((jobs.runs / "sweep" / "trials").iterdir())) == 2


WRONG_SWEEPS: list[tuple[str, str]] = [
    ("sweep.space={optim.lrr: {grid: [1]}}", r"optim\.lrr .*unknown key; did you mean optim\.lr"),
    ("sweep.space={optim.lr: {grid: []}}", r"sweep\.space .*optim\.lr: grid is empty; give"),
    ("sweep.space={optim.lr: {uniform: [-1, 1]}}", r"optim\.lr .*a number > 0, found -1"),
    ("sweep.space={optim.lr: {uniform: [2, 1]}}", r"optim\.lr: uniform expects the lower bound"),
    ("sweep.scheduler=hyperband", r"sweep\.scheduler .*one of none, asha, median, found 'hyper"),
    (
        "sweep.scheduler=asha",
        r"sweep: scheduler=asha stops trials, which biases mean and deviation",
    ),
    ("config.optim.lrr=1", r"optim\.lrr \(command line\): unknown key; did you mean optim\.lr\?"),
    ("job=train", r"job \(command line\): expected one of pretrain, finetune, .* found 'train'"),
    ("config.data.path=absent", r"config\.data\.path=absent: no such folder"),
    ("cluster.workers=2", r"cluster\.workers=2: the trials are the workers here"),
]


@pytest.mark.parametrize(("argument", "message"), WRONG_SWEEPS, ids=[c[0] for c in WRONG_SWEEPS])
def test_a_wrong_sweep_is_refused_before_its_first_trial(
    jobs: Jobs, tiny_prepared: PreparedSet, argument: str, message: str
) -> None:
    jobs.sweep(f"config.data.path={tiny_prepared.path}", "sweep.seeds=2", argument).refused(
        2, message
    )
    assert jobs.left_behind() == []


def test_a_failed_trial_fails_the_sweep_by_name(jobs: Jobs, tiny_prepared: PreparedSet) -> None:
    outcome = jobs.sweep(
        f"config.data.path={tiny_prepared.path}", "config.data.num_points=64",
        "config.model.preset=nano", "sweep.space={model.num_heads: {grid: [5, 7]}}",
    )  # fmt: skip
    assert outcome.status == 1
    assert len(outcome.complaints()) == 1
    assert re.search(r"2 of 2 trials failed \(000_num_heads-5, 001_num_", outcome.complaints()[0])
    assert outcome.out.rstrip().endswith("result.json")


WRONG_TABLES: list[tuple[tuple[str, ...], str]] = [
    (
        ("own.yaml",),
        r"init_from=<run folder or file of weights> must be given, or a section pretrain",
    ),
    (
        ("own.yaml", "init_from=a"),
        r"rows\.modelnet40_1k is not configured; start from configs/reproduce/",
    ),
    (("reproduce.seeds=0",), r"reproduce\.seeds \(command line\): expected .*found 0"),
    (("reproduce.budget=smoke",), r"reproduce\.budget .*unknown key; keys of reproduce are"),
    (("reproduce.rows=[svn]",), r"reproduce\.rows .*unknown row 'svn'; choose one of obj_bg"),
    (("rows.svn.probe.svm_c=1",), r"rows\.svn.*unknown key; did you mean rows\.svm"),
    (("rows.svm.probe.svm_cc=1",), r"rows\.svm\.probe\.svm_cc .*did you mean probe\.svm_c\?"),
    (("rows.svm.probe.svm_c=-1",), r"rows\.svm\.probe\.svm_c .*a number > 0, found -1"),
    (("rows.svm={include: [absent.yaml]}",), r"absent\.yaml: no such file"),
    (("rows.svm.cluster.workers=2",), r"rows\.svm\.cluster\.workers: every run"),
    (("cluster.workers=2",), r"cluster\.workers=2: the trials are the workers here"),
    (("init_from=null", "pretrain.data.path=absent"), r"pretrain\.data\.path=absent: no"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_TABLES)
def test_a_wrong_table_is_refused_before_its_first_run(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(jobs.folder)
    Path("own.yaml").write_text("{}")
    jobs.reproduce(*arguments).refused(2, message)
    assert jobs.left_behind() == []


def test_a_table_with_everything_missing(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(jobs.folder)
    outcome = jobs.reproduce()
    outcome.done()
    assert outcome.out.count("skipped") >= 21
    assert "sets.modelnet40.path=datasets/modelnet40: no such folder; see jobs/prep" in outcome.out


def test_a_damaged_set_fails_its_row_by_name(jobs: Jobs) -> None:
    copy = jobs.folder / "copy"
    source = SyntheticSource(train_per_class=4, test_per_class=2, categories=("chair", "mug"))
    prepare(source, copy, PrepareOptions(num_points=8192, views=1, image_size=32))
    shard = next((copy / "geometry" / "train").iterdir())
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\0\0")
    tiny = "teacher: {image: {name: descriptor}, text: {name: descriptor}}, train.epochs: 1"
    outcome = jobs.reproduce(
        "init_from=null", f"pretrain={{data.path: {copy}, {tiny}}}", "svm_from=null",
        f"sets.modelnet40.path={copy}", "reproduce.rows=[svm]",
    )  # fmt: skip
    assert outcome.status == 1
    assert len(outcome.complaints()) == 1
    assert shard.name in outcome.complaints()[0]
