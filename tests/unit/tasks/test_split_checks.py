"""Splits that share shapes, classes that nothing is trained on: said, counted, refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from data_samples import as_version_2
from job_samples import (
    SIZES,
    changed,
    prepare_rows,
    random_rows,
    run_config,
    run_options,
    save_model,
    usual_options,
)  # fmt: skip

from recon_ray.data.format import point_hashes
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import ConfigError
from recon_ray.tasks.classify.config import FinetuneConfig
from recon_ray.tasks.partseg.config import PartsegConfig
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.split_checks import HeldOut, choose_splits, compare_splits
from recon_ray.tasks.zeroshot.config import ZeroshotConfig

TEST = HeldOut("data.test_split", "test")
NOTHING = {"untrained_classes": {"test": {}}, "duplicates": {"test": {"train": 0}}}


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    """Test: a shape of train in another order, one of val, and mugs, which only it has."""
    rows = random_rows(
        *[("train", "ab"[i % 2], "") for i in range(10)],
        *[("val", "ab"[i % 2], "") for i in range(4)],
        *[("test", "ab"[i % 2], "") for i in range(4)],
        ("test", "mug", ""), ("test", "mug", ""), ("test", "", ""),
    )  # fmt: skip
    clouds = [row[3] for row in rows]
    clouds[11] = clouds[7]  # val
    clouds[14], clouds[15] = clouds[2][::-1], clouds[12]
    rows = [(*row[:3], cloud) for row, cloud in zip(rows, clouds, strict=True)]
    folder = tmp_path_factory.mktemp("overlapping")
    return prepare_rows(folder, rows, num_points=70, views=0, samples_per_shard=4)


@pytest.fixture
def config(overlapping: PreparedSet, tmp_path: Path) -> FinetuneConfig:
    """A fine-tuning of one step, in this process."""
    return FinetuneConfig(
        run={"name": "run", "storage": str(tmp_path / "runs")},
        runtime={"threads": 1},
        cluster={"workers": 0},
        data={"path": str(overlapping.path), "num_points": 64, "validation_split": "val"},
        model={"preset": "nano", **SIZES},
        train={"epochs": 1, "global_batch_size": 10},
        optim={"warmup_epochs": 0},
    )


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_a_fine_tuning_counts_what_its_splits_share(config, caplog) -> None:
    result, _ = run_config("finetune", config)
    assert {name: result["counts"][name] for name in ("unlabeled", "untrained_classes")} == {
        "unlabeled": {"train": 0, "val": 0, "test": 1},
        "untrained_classes": {"val": {}, "test": {"mug": 2}},
    }
    assert result["counts"]["duplicates"] == {
        "val": {"train": 1}, "test": {"train": 1, "val": 1},
    }  # fmt: skip
    said = "\n".join(warnings(caplog))
    assert "1 of the 3 classes in test have no training shape in train" in said
    assert "their 2 shapes cannot be right: mug (2)" in said
    assert "1 of 7 test shapes are in the train split too (same points), first: shape014" in said
    assert "1 of 7 test shapes are in the val split too (same points), first: shape015" in said
    assert "1 of 4 val shapes are in the train split too (same points), first: shape011" in said
    assert "1 of 7 test shapes have no class and are left out" in said
    assert sum(row["count"] for row in result["per_class"].values()) == 6


def test_only_what_is_read_is_compared(overlapping: PreparedSet) -> None:
    ids = overlapping.read("train", ["object_id"])["object_id"].to_pylist()
    place = ids.index("shape002")  # the one that test has too
    for limit, count in ((place, 0), (place + 1, 1)):
        found = compare_splits(overlapping, ["train"], [TEST], limit=limit)
        assert found["duplicates"] == {"test": {"train": count}}
    both = compare_splits(overlapping, ["train", "val"], [TEST])
    assert both["duplicates"] == {"test": {"train+val": 2}}


def test_sets_without_overlap_say_nothing(tiny_prepared: PreparedSet, caplog) -> None:
    found = compare_splits(tiny_prepared, ["train"], [TEST])
    assert found == {**NOTHING, "unlabeled": {"train": 0, "test": 0}}
    assert warnings(caplog) == []


def test_only_the_first_shapes_of_a_large_set_are_compared(
    overlapping: PreparedSet, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(point_hashes, "MOST_COMPARED", 5)
    compare_splits(overlapping, ["train"], [TEST])
    assert "equal shapes were looked for among the first 5 of 10 train shapes only" in "\n".join(
        warnings(caplog)
    )


def test_a_split_within_the_training_split_is_refused(config, tmp_path: Path) -> None:
    rows = random_rows(*[("train", "ab"[i % 2], "") for i in range(10)])
    rows += [("test", *row[1:]) for row in rows[:4]]
    prepared = prepare_rows(tmp_path, rows, num_points=70, views=0)
    data = {"path": str(prepared.path), "validation_split": None}
    with pytest.raises(ConfigError, match=r"data\.test_split=test: all 4 shapes .* are in train"):
        run_config("finetune", changed(config, data=data))
    assert not (tmp_path / "runs").exists()


def test_a_split_of_other_classes_is_refused(config, tmp_path: Path) -> None:
    rows = [("train", "ab"[i % 2], "") for i in range(10)] + [("test", "mug", "")] * 2
    prepared = prepare_rows(tmp_path, random_rows(*rows), num_points=70, views=0)
    data = {"path": str(prepared.path), "validation_split": None}
    message = r"data\.test_split=test: none of its classes .* shape in train \(mug \(2\)\)"
    with pytest.raises(ConfigError, match=message):
        run_config("finetune", changed(config, data=data))


def test_probes_count_it_too(overlapping: PreparedSet, tmp_path: Path) -> None:
    weights = save_model(tmp_path / "pre.safetensors", decoder_depth=1)
    options = {**usual_options(overlapping, tmp_path, weights), "probe": {"knn": (1,), "shots": 0}}
    counts = run_options("linear_probe", options)[0]["counts"]
    assert counts["untrained_classes"] == {"test": {"mug": 2}}
    assert counts["duplicates"] == {"test": {"train": 1}}
    assert (counts["unlabeled"], counts["probe_test"]) == ({"train": 0, "test": 1}, 6)


def test_a_pre_training_counts_it_where_it_measures(
    tiny_config: PretrainConfig, overlapping: PreparedSet, tiny_prepared: PreparedSet
) -> None:
    sections: dict[str, Any] = {
        "data": {"path": str(overlapping.path), "normalize": True},
        "teacher": {"image": {"name": None}, "text": {"name": None}},
        "train": {"epochs": 1},
        "optim": {"warmup_epochs": 0},
        "validation": {"every_epochs": 1, "path": str(tiny_prepared.path)},
    }
    config = changed(tiny_config, **sections)
    counts = run_config("pretrain", config)[0]["counts"]
    assert counts["untrained_classes"] == {"test": {"mug": 2}}
    assert counts["duplicates"] == {"test": {"train": 1}}
    assert counts["validation"] == {**NOTHING, "unlabeled": {"train": 0, "test": 0}}
    without = changed(config, eval={"enabled": False}, validation={"every_epochs": None})
    counts = run_config("pretrain", changed(without, run={"name": "without"}))[0]["counts"]
    assert "duplicates" not in counts


def test_part_segmentation_counts_it_too(tiny_parts: PreparedSet, tmp_path: Path) -> None:
    config = PartsegConfig(
        run={"name": "run", "storage": str(tmp_path / "runs")},
        runtime={"threads": 1},
        cluster={"workers": 0},
        data={"path": str(tiny_parts.path), "num_points": 64},
        model={"preset": "nano", **SIZES, "depth": 3},
        train={"epochs": 1, "global_batch_size": 3},
        optim={"warmup_epochs": 0},
    )
    counts = run_config("partseg", config)[0]["counts"]
    assert counts["duplicates"] == {"test": {"train+val": 0}}
    assert counts["untrained_classes"] == {"test": {}}


# --- Splits that are read -------------------------------------------------------------------------
def chosen(prepared: PreparedSet, reads_all: bool = False, **options: Any) -> tuple[Any, str]:
    config = ZeroshotConfig(init_from="x", **options)
    config, text = choose_splits(config, prepared, "zeroshot.splits", reads_all=reads_all)
    return config.zeroshot.splits, text


def test_what_is_read_and_what_is_not_is_said(overlapping: PreparedSet, tmp_path: Path) -> None:
    every = "zeroshot.splits=[train,val,test]"
    left = f"train holds 10 more, val holds 4 more: {every}"
    assert chosen(overlapping) == (("test",), f"7 shapes of test; {left}")
    limited = chosen(overlapping, data={"limit": 5})[1]
    assert limited == f"5 shapes of test (data.limit=5); {left}"
    whole = (("train", "val", "test"), "21 shapes of train and val and test")
    assert chosen(overlapping, reads_all=True) == whole
    twice = {"splits": ["test", "train", "test"]}
    assert chosen(overlapping, zeroshot=twice)[0] == ("test", "train")
    root = Path(shutil.copytree(overlapping.path, tmp_path / "set"))
    manifest = as_version_2(root)
    manifest["splits"] = {"train": manifest["splits"]["train"], "test": {
        **manifest["splits"]["test"], "rows": 0, "shards": []
    }}  # fmt: skip
    (root / "_manifest.json").write_text(json.dumps(manifest))
    without = PreparedSet.open(root)
    assert chosen(without) == (("train",), "10 shapes of train")
    with pytest.raises(ConfigError, match=r"zeroshot\.splits=test: .* shapes in .* only in train"):
        chosen(without, zeroshot={"splits": ["test"]})
