"""The published table in this process: what is planned, run, skipped, repeated, and said of it."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from recon_ray.config.loader import load
from recon_ray.data.fewshot.draw import draw_episodes
from recon_ray.data.format.files import write_json, write_table
from recon_ray.data.format.prepared import EPISODES_RECORD, PreparedSet
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.procedural.synthetic import SyntheticSource
from recon_ray.errors import ConfigError
from recon_ray.reproduce.config import ReproduceConfig
from recon_ray.reproduce.job import reproduce
from recon_ray.reproduce.paper import ROWS
from recon_ray.reproduce.plan import TablePlan, plan_table, set_notes
from recon_ray.sweeps.trial_folders import TrialFolders
from recon_ray.tasks.classify.config import EvaluateConfig
from recon_ray.tasks.registry import Job, JobResult

Make = Callable[..., ReproduceConfig]
ROOT = Path(__file__).resolve().parents[3]
MODEL = {
    "preset": "nano", "embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 8,
}  # fmt: skip
TRAIN = {
    "train": {"epochs": 2, "global_batch_size": 8, "log_every_steps": 1},
    "optim": {"lr": 1e-3, "warmup_epochs": 1},
}
TEACHERS = {
    "image": {"name": "descriptor:32", "augment": "none"},
    "text": {"name": "descriptor:32"},
}
PARTS = {**TRAIN, "data.num_points": 64, "model": {"num_groups": 8, "feature_blocks": [0, 1]}}


@pytest.fixture
def make(tiny_prepared: PreparedSet, tiny_parts: PreparedSet, tmp_path: Path) -> Make:
    """A table of few rows, each of which takes a second or two."""
    points = {"data.num_points": 64}
    rows = {
        "obj_bg": {**TRAIN, **points},
        "modelnet40_8k": {**TRAIN, **points, "optim.weight_decay": 0.1},
        "voting": {"eval.votes": 2, "eval.repeats": 2},
        "zeroshot_modelnet10": {**points, "teacher.text.name": "descriptor:32"},
        "svm": {**points, "probe": {"knn": [1], "draws": 2, "shots": 2}},
        "partseg": PARTS,
    }
    sets = {name: {"path": str(tiny_prepared.path)} for name in ("modelnet10", "modelnet40")}
    sets["scanobjectnn_obj_bg"] = {"path": str(tiny_prepared.path), "stand_in": False}
    sets["shapenetpart"] = {"path": str(tiny_parts.path)}
    pretraining = {
        **TRAIN,
        "data": {"path": str(tiny_prepared.path), "num_points": 64},
        "model": {**MODEL, "decoder_depth": 1},
        "teacher": TEACHERS,
        "eval": {"draws": 2, "shots": 2},
    }

    def made(changes: dict[str, Any] | None = None, **more: Any) -> ReproduceConfig:
        options = {"seeds": 2, **more.pop("reproduce", {})}
        return ReproduceConfig(
            run={"name": "t", "storage": str(tmp_path / "runs")},
            cluster={"workers": 0},
            runtime={"threads": 1},
            reproduce=options,
            **{"pretrain": pretraining, "sets": sets, "rows": {**rows, **(changes or {})}, **more},
        )

    return made


def run(config: ReproduceConfig, *, dry_run: bool = False) -> JobResult:
    return reproduce(Job("reproduce", config, {}, (), dry_run))


def times(folder: Path) -> dict[str, int]:
    """When the results of all runs were written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}


def test_the_table_is_that_of_its_runs_and_nothing_is_run_twice(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "t"
    absent = {"modelnet40": {"path": "absent"}}
    sets = make().sets.model_dump() | absent
    broken = {"partseg": {**PARTS, "train.global_batch_size": 64}}
    first = run(make(broken, sets=sets))
    # One row fails and is named, rows without their set are skipped, the others are there.
    assert re.match(r"1 of 6 trials failed \(partseg\); partseg: .*only 9 samples", first.failure)
    before = times(folder / "trials")
    assert sorted(before) == [
        "obj_bg_seed-0", "obj_bg_seed-1", "obj_bg_vote_seed-0", "obj_bg_vote_seed-1", "pretrain",
        "zeroshot_modelnet10",
    ]  # fmt: skip
    lines = {line["title"]: line for line in json.loads(_read(folder))["lines"]}
    skipped = lines["linear SVM ModelNet40"]
    assert (skipped["measured"], skipped["count"]) == ("skipped", 0)
    assert "sets.modelnet40.path=absent: no such folder" in skipped["absent"]
    assert lines["ShapeNetPart, instance mIoU"]["measured"] == "failed"
    assert json.loads(_read(folder))["status"] == "incomplete"

    # The sets are there now, and the row is mended: only what was not done is run.
    second = run(make())
    assert second.failure is None
    assert {name: times(folder / "trials")[name] for name in before} == before
    assert len(times(folder / "trials")) == 12
    result = json.loads(_read(folder))
    lines = {line["title"]: line for line in result["lines"]}
    assert (result["counts"]["done"], result["status"]) == (11, "done")
    for title, row, metric in (
        ("ScanObjectNN OBJ_BG, plain", "obj_bg", "accuracy"),
        ("ScanObjectNN OBJ_BG, voting", "obj_bg_vote", "accuracy_vote_mean"),
    ):
        found = [_metric(folder, f"{row}_seed-{seed}", metric) for seed in (0, 1)]
        line = lines[title]
        assert line["mean"] == pytest.approx(sum(found) / 2, abs=1e-12)
        half = abs(found[0] - found[1]) / math.sqrt(2)  # ddof=1 of two numbers
        assert line["std"] == pytest.approx(half, abs=1e-12)
        assert line["max"] == max(found)
    starred = lines["zero-shot ModelNet10*"]["mean"], lines["zero-shot ModelNet10"]["mean"]
    assert starred == tuple(
        _metric(folder, "zeroshot_modelnet10", f"zeroshot_accuracy{end}") for end in ("", "_test")
    )
    # What the numbers were measured on is said of every line.
    declared = lines["ScanObjectNN OBJ_BG, voting"]
    assert declared["measured"].startswith("declared to be the published set, other pre-training")
    assert declared["published_percent"] == 95.35
    assert lines["linear SVM ModelNet40"]["measured"].startswith("stand-in, other pre-training")
    # Published numbers are not shown beside those of other sets.
    assert lines["linear SVM ModelNet40"]["published_percent"] is None
    assert "93.4 %" not in second.table
    assert "other pre-training: synthetic, descriptor teachers" in second.table
    assert "[1]" in second.table
    assert "2 of 8 seeds" in second.table

    table = pq.read_table(folder / "table.parquet").to_pydict()
    assert table["mean"] == [line["mean"] for line in result["lines"]]
    trials = pq.read_table(folder / "trials.parquet").to_pydict()
    assert trials["row"].count("modelnet40_8k_vote") == 2
    assert "| ScanObjectNN OBJ_BG, voting |" in (folder / "table.md").read_text()
    assert (folder / "report.html").read_text().count("data:image/png") >= 2
    hand = load(EvaluateConfig, [str(folder / "trials/obj_bg_vote_seed-1/config.yaml")]).config
    assert hand.init_from == str(folder / "trials" / "obj_bg_seed-1")

    # Finished runs are not taken for those of another configuration or set.
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.001 then, 0\.1 now"):
        run(make({"obj_bg": {**TRAIN, "optim.lr": 0.1, "data.num_points": 64}}))
    noted = folder / "trials" / "svm" / "inputs.json"
    before = json.loads(noted.read_text())
    assert before.keys() == {"data.path", "init_from"}
    write_json(noted, before | {"data.path": "0" * 64})
    with pytest.raises(ConfigError, match=r"sets\.modelnet40\.path=.*: the set is no longer what"):
        run(make())
    write_json(noted, before | {"init_from": "0" * 64})
    with pytest.raises(ConfigError, match=r"init_from=.*pretrain: the weights are no longer what"):
        run(make())


def _read(folder: Path) -> str:
    return (folder / "result.json").read_text()


def _metric(folder: Path, trial: str, name: str) -> float:
    result = TrialFolders(str(folder)).result(trial)
    assert result is not None
    return float(result["metrics"][name])


def test_the_plan_has_steps_lengths_numbers_and_what_is_missing(make: Make, tmp_path: Path) -> None:
    sets = make().sets.model_dump() | {"shapenetpart": {"path": None}}
    text = run(make(sets=sets), dry_run=True).table
    assert not (tmp_path / "runs").exists()
    steps = re.findall(r"^(\w+) +(\d+/\d+) +(\d \w+|-)  ", text, flags=re.MULTILINE)
    assert steps == [
        ("pretrain", "0/1", "2 epochs"), ("obj_bg", "0/2", "2 epochs"),
        ("obj_bg_vote", "0/2", "2 rounds"), ("modelnet40_8k", "0/2", "2 epochs"),
        ("modelnet40_8k_vote", "0/2", "2 rounds"), ("zeroshot_modelnet10", "0/1", "-"),
        ("svm", "0/1", "-"),
    ]  # fmt: skip
    (voting,) = (line for line in text.splitlines() if line.startswith("obj_bg_vote"))
    assert "95.35 %" in voting
    assert "after obj_bg, 2 of 8 seeds, 2 of 299 rounds of voting, 2 of 10 subsets" in voting
    assert "partseg skipped: sets.shapenetpart.path is null" in text
    assert text.endswith("11 runs are left, 10 epochs of training in all")
    assert re.search(r"^disk: 5 trainings keep up to 0\.0 GB of checkpoints", text, re.MULTILINE)
    (svm,) = (line for line in text.splitlines() if line.startswith("svm "))
    assert "93.4 %" not in svm  # it would be measured on a stand-in
    chosen = run(make(reproduce={"rows": ["obj_bg"]}), dry_run=True).table
    assert chosen.endswith("3 runs are left, 6 epochs of training in all")


def test_rows_of_equal_runs_share_them(make: Make, tmp_path: Path) -> None:
    """Two sets are one folder: the fine-tunings and voting of the second row would be the same."""
    row = {**TRAIN, "data.num_points": 64}
    config = make({"modelnet40_8k": row}, reproduce={"rows": ["obj_bg", "modelnet40_8k", "voting"]})
    text = run(config, dry_run=True).table
    assert text.endswith("5 runs are left, 6 epochs of training in all")
    assert "the runs of obj_bg_vote" in text
    result = run(config)
    assert result.failure is None
    trials = tmp_path / "runs" / "t" / "trials"
    assert sorted(path.name for path in trials.iterdir()) == [
        "obj_bg_seed-0", "obj_bg_seed-1", "obj_bg_vote_seed-0", "obj_bg_vote_seed-1", "pretrain",
    ]  # fmt: skip
    record = json.loads(_read(trials.parent))
    assert record["counts"]["trials"] == 4
    lines = {line["title"]: line for line in record["lines"]}
    first, second = (lines[f"{name}, voting"] for name in ("ScanObjectNN OBJ_BG", "ModelNet40 8k"))
    assert (first["mean"], first["trials"]) == (second["mean"], second["trials"])
    assert "runs of obj_bg_vote: equal options, set and seeds" in second["notes"]


def test_missing_weights_skip_their_rows(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECON_WEIGHTS", raising=False)
    text = run(make(init_from="recon_pretrain"), dry_run=True).table
    assert "svm skipped: recon_pretrain: these weights are published" in text
    assert "obj_bg_vote skipped: recon_pretrain" in text
    assert "0 runs are left" in text


def test_few_shot_folds_fill_the_lines_of_their_setting(make: Make, tmp_path: Path) -> None:
    names = ("chair", "lamp", "mug", "table", "bottle")
    source = SyntheticSource(train_per_class=10, test_per_class=4, categories=names)
    prepare(source, tmp_path / "five", PrepareOptions(num_points=64, samples_per_shard=70))
    few = PreparedSet.open(tmp_path / "five")
    columns = [
        few.read(split, ["object_id", "label"])[name].to_pylist()
        for split in ("train", "test")
        for name in ("object_id", "label")
    ]
    options = {"ways": (5,), "shots": (10,), "folds": 2, "test_per_class": 4, "seed": 0}
    folder = tmp_path / "episodes"
    folder.mkdir()
    entry = write_table(folder, "episodes.parquet", draw_episodes(*columns, **options))
    write_json(folder / EPISODES_RECORD, {"manifest_sha256": few.manifest_hash, **entry})
    row = {**TRAIN, "data.num_points": 64, "fewshot": {"way": 5, "shot": 10}}
    sets = {"fewshot": {"path": str(few.path)}, "episodes": str(folder)}
    chosen = {"rows": ["fewshot"], "folds": 2}
    result = run(make({"fewshot": row}, sets=sets, reproduce=chosen))
    assert result.failure is None
    record = json.loads(_read(tmp_path / "runs" / "t"))
    lines = {line["title"]: line for line in record["lines"]}
    folds = [f"fewshot_5way_10shot_0{fold}" for fold in (0, 1)]
    found = [_metric(tmp_path / "runs" / "t", fold, "accuracy") for fold in folds]
    assert lines["5-way 10-shot"]["trials"] == folds
    assert lines["5-way 10-shot"]["mean"] == pytest.approx(sum(found) / 2, abs=1e-12)
    assert lines["5-way 10-shot"]["published_percent"] is None  # of ModelNet40
    assert lines["10-way 20-shot"]["count"] == 0
    assert "stand-in: synthetic (train 50, test 20)" in result.table


# --- Length ---------------------------------------------------------------------------------------
def planned(storage: Path, *arguments: str) -> TablePlan:
    """The plan of shipped files, with further options."""
    folder = ROOT / "configs" / "reproduce"
    given = [str(folder / a) if a.endswith(".yaml") else a for a in arguments]
    loaded = load(ReproduceConfig, given)
    return plan_table(loaded.config, loaded.origins, str(storage))


def test_the_published_plan_is_the_papers(tmp_path: Path) -> None:
    table = planned(tmp_path, "paper.yaml")
    runs = {plan.row.name: len(plan.trials) for plan in table.rows}
    assert [plan.row for plan in table.rows] == list(ROWS)
    assert runs["pb_t50_rs"] == runs["modelnet40_8k_vote"] == 8
    assert runs["fewshot"] == 40
    assert sum(runs.values()) == 5 * 8 * 2 + 40 + 3 + 1 + 1
    assert not any(plan.scaled for plan in table.rows)
    by_name = {plan.row.name: plan.config for plan in table.rows}
    assert by_name["modelnet40_8k"].data.num_points == 8192
    assert by_name["obj_bg_vote"].eval.votes == 299
    assert by_name["svm"].init_from == "recon_svm"
    assert by_name["zeroshot_scanobjectnn"].zeroshot.ratio == 0.15


def test_the_smoke_overlay_shortens_every_row_and_the_table_says_so(tmp_path: Path) -> None:
    full = planned(tmp_path, "stand_ins.yaml")
    over = planned(tmp_path, "from_pretraining.yaml", "smoke.yaml")
    for table in (full, over):
        assert [plan.row for plan in table.rows] == list(ROWS)
        assert table.pretrain is not None
        assert table.pretrain.model.preset == "nano"
        assert sum(len(plan.trials) for plan in table.rows) == 5 * 2 * 2 + 8 + 3 + 1 + 1
        scaled = {plan.row.name: list(plan.scaled) for plan in table.rows}
        assert all(scaled.values())
        assert scaled["partseg"] == [
            "3 of 300 epochs",
            "1,024 of 2,048 points",
            "at most 256 shapes",
        ]
        assert scaled["fewshot"] == ["2 of 10 folds", "2 of 150 epochs"]
        assert scaled["pb_t50_rs_vote"] == [
            "2 of 8 seeds", "3 of 299 rounds of voting", "2 of 10 subsets a round",
        ]  # fmt: skip


def test_a_run_that_is_shortened_by_hand_is_marked_too(tmp_path: Path) -> None:
    changed = ("rows.partseg.train.steps=9", "rows.partseg.model.preset=small", "reproduce.seeds=9")
    table = planned(tmp_path, "paper.yaml", *changed, "rows.pb_t50_rs.train.epochs=400")
    scaled = {plan.row.name: list(plan.scaled) for plan in table.rows}
    assert scaled["partseg"] == ["at most 9 steps", "small model"]
    assert scaled["pb_t50_rs"] == ["9 of 8 seeds"]
    assert scaled["svm"] == []


def test_options_of_the_earlier_budget_are_refused_by_name() -> None:
    file = str(ROOT / "configs/reproduce/paper.yaml")
    for option in ("budget=smoke", "measure=false"):
        with pytest.raises(ConfigError, match=r"^reproduce\.\w+ .*: unknown key; .*reproduce"):
            load(ReproduceConfig, [file, f"reproduce.{option}"])


# --- What is genuine ------------------------------------------------------------------------------
def test_a_part_is_no_stand_in(make: Make, tiny_prepared: PreparedSet, tmp_path: Path) -> None:
    genuine = tmp_path / "modelnet10"
    shutil.copytree(tiny_prepared.path, genuine)
    manifest = json.loads((genuine / "_manifest.json").read_text())
    card = {"name": "modelnet10", "title": "ModelNet10", "counts": {"train": 3991, "test": 12}}
    write_json(genuine / "_manifest.json", {**manifest, "card": card})
    sets = make().sets.model_dump() | {"modelnet10": {"path": str(genuine)}}

    def notes(**section: Any) -> dict[str, list[str]]:
        changed = {**sets, "modelnet10": {**sets["modelnet10"], **section}}
        table = plan_table(make(sets=changed), {}, str(tmp_path))
        return {plan.row.name: set_notes(plan) for plan in table.rows}

    found = notes()
    assert found["zeroshot_modelnet10"] == ["part of the set: train 24 of 3,991"]
    assert found["svm"] == ["stand-in: synthetic (train 24, test 12)"]
    assert found["obj_bg"] == ["declared to be the published set: synthetic (train 24, test 12)"]
    assert notes(stand_in=True)["zeroshot_modelnet10"][0].startswith("stand-in: ModelNet10")
