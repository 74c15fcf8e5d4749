"""Fine-tuning, evaluation and few-shot runs that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_samples import as_version_2
from job_runs import QUICK, Jobs, change_manifest

from recon_ray.data.format.prepared import PreparedSet


def _two_classes(manifest: dict[str, Any]) -> None:
    manifest["classes"] = manifest["classes"][:2]


def _other_names(manifest: dict[str, Any]) -> None:
    manifest["classes"] = ["chair", "sofa", "mug"]


def _of_episodes(manifest: dict[str, Any]) -> None:
    manifest["tables"] = {"episodes": {"file": "episodes.parquet"}}


def _empty_test(manifest: dict[str, Any]) -> None:
    manifest["splits"]["test"] |= {"rows": 0, "shards": []}


HELD_OUT = "data.validation_fraction=0.1 data.validation_split"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("data.test_split=val", r"data\.test_split=val: .* has the splits train, test; cho"),
        ("data.num_points=97", r"data\.num_points=97: .* holds 96 points a shape; lower it"),
        ("protocol=reference", r"data\.num_points=64: protocol=reference samples 1024, 204"),
        ("model.num_groups=65", r"model\.num_groups=65 is more than data\.num_points=64"),
        ("model.num_heads=5", r"model: .*embed_dim.*; change model"),
        ("data.train_splits=[train,test]", r"data\.test_split=test is one of data\.train"),
        ("data.validation_fraction=1", r"data\.validation_fraction .* found 1"),
        ("data.validation_fraction=0.1", r"needs a name for what is held out"),
        (f"{HELD_OUT}=val cluster.workers=1", r"is held out in one process; set cluster.workers=0"),
        (f"{HELD_OUT}=v data.train_splits=[a,b]", r"divides one training split"),
        (
            f"{HELD_OUT}=test data.test_split=val",
            r"data\.validation_split=test: .* has a split of this name already",
        ),
    ],
)
def test_a_set_that_cannot_be_learned_so_is_refused(
    jobs: Jobs, tiny_prepared: PreparedSet, options: str, message: str
) -> None:
    jobs.finetune(f"data.path={tiny_prepared.path}", *options.split()).refused(2, message)
    assert jobs.left_behind() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_two_classes, r"data\.train_splits=train: .* has a shape of class 2, but the head has 2"),
        (_empty_test, r"data\.test_split=test: it has no shapes in .*/copy; choose another split"),
        (
            _of_episodes,
            r"data\.path=.*/copy: it holds the clouds of few-shot episodes, .*data\.episode=\[way",
        ),
    ],
)
def test_a_set_that_cannot_be_learned_is_refused(
    jobs: Jobs, copy: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    as_version_2(copy)
    change_manifest(copy, change)
    jobs.finetune(f"data.path={copy}").refused(2, message)
    assert jobs.left_behind() == []


def test_weights_that_cannot_start_a_classifier_are_refused(jobs: Jobs, copy: Path) -> None:
    start = f"data.path={copy}"
    missing = jobs.finetune(start, f"init_from={jobs.folder / 'none.pth'}")
    missing.refused(2, r"none\.pth: there is no such file or folder; give a run folder, a checkpo")
    unknown = jobs.finetune(start, "init_from=recon_pretrian")
    unknown.refused(2, r"recon_pretrian: there is no such file, run folder, or name of published")
    folder = jobs.folder / "empty"
    folder.mkdir()
    empty = jobs.finetune(start, f"init_from={folder}")
    empty.refused(2, r"empty: no checkpoint there; give a run")
    assert jobs.left_behind() == []


def test_a_classifier_of_another_family_or_other_classes_is_refused(jobs: Jobs, copy: Path) -> None:
    jobs.finetune(f"data.path={copy}").done()
    jobs.pretrain(*QUICK).done()
    before = jobs.left_behind()
    tuned, start = f"init_from={jobs.runs / 'tuned'}", f"data.path={copy}"
    plain = jobs.evaluate(f"init_from={jobs.runs / 'run'}", start)
    plain.refused(2, r"init_from: .*/run .* holds the weights of a recon model, which \w+ no cl")
    jobs.evaluate(start).refused(2, r"init_from: no classifier is named; give a run folder of jobs")
    jobs.evaluate(tuned, start, "data.split=val").refused(2, r"data\.split=val: .* has the splits")
    change_manifest(copy, _other_names)
    other = jobs.evaluate(tuned, start)
    other.refused(
        2, r"init_from: class 1 of .*/tuned .* is 'lamp', that of .*/copy is 'sofa'; give"
    )
    change_manifest(copy, _two_classes)
    fewer = jobs.evaluate(tuned, start)
    fewer.refused(2, r"init_from: .* has 3 classes, .*/copy has 2; give the classifier of")
    assert jobs.left_behind() == before


def test_batches_of_one_shape_are_refused_before_the_run_begins(
    jobs: Jobs, tiny_prepared: PreparedSet
) -> None:
    data = f"data.path={tiny_prepared.path}"
    cases = {
        "train.global_batch_size=1": r"train\.global_batch_size=1: a worker would train on one",
        "train.micro_batch_size=1": r"train\.micro_batch_size=1: a worker, 8 in 8 parts, would",
        "train.global_batch_size=3 train.micro_batch_size=2": r"=2: a worker, 3 in 2 parts",
    }
    for options, message in cases.items():
        jobs.finetune(data, *options.split()).refused(2, message)
    contrast = ("loss.self_contrast=true", "train.micro_batch_size=1")
    jobs.pretrain(*QUICK, *contrast).refused(2, r"train\.micro_batch_size=1: a worker, 8 in 8 part")
    assert jobs.left_behind() == []
    jobs.pretrain(*QUICK, "train.micro_batch_size=1").done()  # its norms are over points
    jobs.finetune(data, "train.tune=linear", "train.global_batch_size=1").done()


def test_few_shot_runs_need_episodes(jobs: Jobs, tiny_prepared: PreparedSet) -> None:
    given = (f"data.path={tiny_prepared.path}", "data.num_points=64", "cluster.workers=0")
    jobs.fewshot(*given).refused(1, r"data\.episodes=\S*[^:\s]: holds no few-shot episodes; make")
    absent = jobs.fewshot(*given, "data.episodes=absent")
    absent.refused(2, r"data\.episodes=absent: no such folder")
    none = jobs.fewshot(*given, "fewshot.folds=[]")
    none.refused(2, r"way, shot or folds is empty; give numbers")
    assert jobs.left_behind() == []
