"""Zero-shot classification of sets without classes, and of shapes without them, in this process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from job_samples import prepare_rows, random_rows, run_options, save_model, usual_options

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import ConfigError
from recon_ray.tasks.predictions import PREDICTIONS

NAMES = ["chair", "lamp", "sofa"]
TEACHER = {"text": {"name": "descriptor:16"}}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"decoder_depth": 1, "image_dim": None, "text_dim": 16}
    return save_model(tmp_path_factory.mktemp("weights") / "pre.safetensors", **sizes)


def prepared(folder: Path, *rows: tuple[str, str, str]) -> PreparedSet:
    return prepare_rows(folder, random_rows(*rows), num_points=70, views=0)


def run(
    prepared: PreparedSet, folder: Path, weights: Path, **zeroshot: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return ``result.json`` and the predictions."""
    options = {**usual_options(prepared, folder, weights), "teacher": TEACHER}
    result, place = run_options("zeroshot", {**options, "zeroshot": zeroshot})
    assert result["predictions"] == PREDICTIONS
    return result, pq.read_table(place / PREDICTIONS).to_pylist()


def test_a_set_without_classes_is_predicted_and_not_measured(weights, tmp_path, capsys) -> None:
    own = prepared(tmp_path, *[("test", "", "")] * 5, *[("train", "", "")] * 3)
    result, rows = run(own, tmp_path, weights, classes=NAMES)
    assert result["metrics"] == {"shapes": 5.0}
    assert not {"confusion", "per_class", "class_accuracy"} & result.keys()
    assert result["selection"].startswith("5 shapes of test; train holds 3 more: zeroshot.splits")
    assert result["counts"]["labeled"] == {"test": 0}
    assert sum(result["predicted"].values()) == len(rows) == 5
    assert [*result["predicted"]] == NAMES
    for row in rows:
        assert (row["label"], row["category"]) == (None, None)
        assert row["predicted"] in NAMES
        assert sorted(row["top5"]) == sorted(NAMES)
    everything, rows = run(own, tmp_path, weights, classes=NAMES, splits=["train", "test"])
    assert everything["counts"]["shapes"] == {"train": 3, "test": 5}
    assert [row["split"] for row in rows] == ["train"] * 3 + ["test"] * 5


def test_shapes_without_a_class_are_predicted_and_not_counted(weights, tmp_path) -> None:
    kinds = ["chair", "lamp", "", "chair", ""]
    own = prepared(tmp_path, *[("test", kind, "") for kind in kinds])
    for given in (None, NAMES):
        result, rows = run(own, tmp_path, weights, classes=given)
        assert result["counts"]["shapes"] == {"test": 5}
        assert result["counts"]["labeled"] == {"test": 3}
        assert "; 3 of 5 have a class and count" in result["selection"]
        right = [row["predicted"] == row["category"] for row in rows if row["category"]]
        assert len(right) == 3
        assert result["metrics"]["zeroshot_accuracy"] == pytest.approx(sum(right) / 3)
        assert not math.isnan(result["class_accuracy"])
        assert sum(row["label"] is None for row in rows) == 2


def test_a_split_without_any_class_needs_no_list_where_the_set_has_classes(
    weights, tmp_path
) -> None:
    kinds = [("train", "chair", ""), ("train", "lamp", ""), ("test", "", "")]
    own = prepared(tmp_path, *kinds)
    result, rows = run(own, tmp_path, weights)
    assert result["metrics"] == {"shapes": 1.0}
    assert rows[0]["predicted"] in ("chair", "lamp")
    both, _ = run(own, tmp_path, weights, splits=["train", "test"])
    assert {name for name in both["metrics"] if name.startswith("zeroshot_accuracy")} == {
        "zeroshot_accuracy"
    }


def test_without_classes_and_names_there_is_nothing_to_choose_from(weights, tmp_path) -> None:
    own = prepared(tmp_path, ("test", "", ""), ("test", "", ""))
    message = r"has 0 classes to choose from; name two or more, zeroshot\.classes=\[chair,table\]"
    with pytest.raises(ConfigError, match=message):
        run(own, tmp_path, weights)
    for blank in (["chair", " "], {"chair": ""}):
        with pytest.raises(ValueError, match="at least 1 character"):
            run(own, tmp_path, weights, classes=blank)
