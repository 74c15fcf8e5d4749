"""Retrieval: ranks and chance by hand, and the job in this process."""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from job_samples import (
    prepare_rows,
    random_rows,
    run_config,
    run_options,
    save_model,
    usual_options,
)  # fmt: skip
from source_features import ship_features

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.schema import points_to_numpy
from recon_ray.data.loading.images import ImageTransform, load_images
from recon_ray.errors import ConfigError
from recon_ray.tasks.cache_teachers.config import CacheTeachersConfig
from recon_ray.tasks.retrieve import ranks
from recon_ray.tasks.zeroshot.evaluation import class_vectors
from recon_ray.teachers.bank import text_bank
from recon_ray.teachers.create import create_image_teacher, create_text_teacher

Options = dict[str, Any]
ANGLES = torch.tensor([0.0, 0.1, 0.2, 0.3])


def directions(angles: torch.Tensor, groups: list[int]) -> ranks.Items:
    """Vectors of any length in the plane, whose cosines are those of their angles."""
    lengths = torch.arange(1.0, len(angles) + 1)[:, None]
    return ranks.Items(
        lengths * torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor(groups)
    )


# --- By hand --------------------------------------------------------------------------------------
@pytest.mark.parametrize("cells", [1, 5, 1 << 20])
def test_the_rank_is_that_of_the_best_item_of_the_group(cells: int) -> None:
    gallery = directions(ANGLES, [7, 8, 7, 9])
    queries = directions(torch.tensor([0.0, 0.16, 0.31]), [7, 9, 8])
    # 0.0: itself first. 0.16: 0.2, 0.1, 0.3 (group 9). 0.31: 0.3, 0.2, 0.1 (group 8).
    assert ranks.first_ranks(queries, gallery, cells=cells).tolist() == [1, 3, 3]


def test_ties_count_against_the_search_and_items_of_the_group_do_not() -> None:
    same = torch.zeros(4)
    gallery = directions(same, [1, 1, 2, ranks.NO_GROUP])
    queries = directions(same[:2], [1, 2])
    assert ranks.first_ranks(queries, gallery).tolist() == [3, 4]
    assert ranks.nearest(queries.features, gallery.features, 2)[1].tolist() == [[0, 1], [0, 1]]


def test_equal_texts_are_right_for_each_of_their_shapes() -> None:
    shapes = directions(ANGLES, [0, 0, 1, ranks.NO_GROUP])
    texts = directions(torch.tensor([0.12, 0.21]), [0, 1])
    back, forth = ranks.search_metrics(texts, shapes), ranks.search_metrics(shapes, texts)
    assert (back["recall_at_1"], back["queries"], back["gallery"]) == (1.0, 2, 4)
    assert back["chance_at_1"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    # The shape without a text is no query; 0.2 finds the text at 0.21 first, 0.0 and 0.1 theirs.
    assert (forth["recall_at_1"], forth["queries"], forth["gallery"]) == (1.0, 3, 2)
    assert forth["median_rank"] == 1.0


def test_recall_and_median_of_a_bad_search() -> None:
    angles = torch.arange(12) / 10
    gallery = directions(angles, list(range(12)))
    queries = directions(torch.tensor([0.0, 0.11, 0.22, 0.33]), [0, 2, 6, 11])
    found = ranks.search_metrics(queries, gallery)
    assert ranks.first_ranks(queries, gallery).tolist() == [1, 2, 7, 12]
    assert [found[f"recall_at_{k}"] for k in (1, 5, 10)] == [0.25, 0.5, 0.75]
    assert found["median_rank"] == 4.5
    assert [found[f"chance_at_{k}"] for k in (1, 5, 10)] == pytest.approx([1 / 12, 5 / 12, 10 / 12])
    assert found["chance_median_rank"] == 6


def test_chance_is_that_of_all_draws() -> None:
    right, size = torch.tensor([1, 3, 6]), 6
    for k in (1, 2, 3, 6, 10):
        draws = list(combinations(range(size), min(k, size)))
        expected = [np.mean([min(draw) < count for draw in draws]) for count in right.tolist()]
        assert ranks.chance_recall(right, size, k) == pytest.approx(np.mean(expected), abs=1e-12)
    assert ranks.chance_median_rank(torch.tensor([1]), 10) == 5
    assert ranks.chance_median_rank(torch.tensor([10]), 10) == 1


def test_nothing_is_measured_where_no_query_has_an_answer() -> None:
    gallery = directions(ANGLES, [0, 1, ranks.NO_GROUP, ranks.NO_GROUP])
    queries = directions(ANGLES[:2], [2, ranks.NO_GROUP])
    assert ranks.right_items(queries.groups, gallery.groups).tolist() == [0, 0]
    assert ranks.search_metrics(queries, gallery) == {}


# --- The job --------------------------------------------------------------------------------------
IMAGE, TEXT = 32, 24


def save(path: Path, **dims: int | None) -> Path:
    return save_model(path, **{"decoder_depth": 1, "image_dim": IMAGE, "text_dim": TEXT, **dims})


@pytest.fixture
def usual(tiny_prepared: PreparedSet, tmp_path: Path) -> dict[str, Any]:
    image, text = {"name": f"descriptor:{IMAGE}"}, {"name": f"descriptor:{TEXT}"}
    options = usual_options(tiny_prepared, tmp_path, save(tmp_path / "pre.safetensors"))
    return {**options, "teacher": {"image": image, "text": text}, "retrieval": {}}


def run(options: dict[str, Any], **retrieval: Any) -> dict[str, Any]:
    changed = {**options, "retrieval": {**options["retrieval"], **retrieval}}
    return run_options("retrieve", changed)[0]


def test_every_direction_is_measured_beside_chance(usual: Options) -> None:
    found = run(usual)
    left = "12 shapes of test; train holds 24 more: retrieval.splits=[train,test]"
    assert found["selection"].startswith(left)
    sizes = found["counts"]["directions"]
    assert sizes == {
        "cloud_to_text": {"queries": 12, "gallery": 3},
        "text_to_cloud": {"queries": 3, "gallery": 12},
        "cloud_to_image": {"queries": 12, "gallery": 12},
        "image_to_cloud": {"queries": 12, "gallery": 12},
    }
    metrics = found["metrics"]
    assert metrics["cloud_to_text_chance_at_1"] == pytest.approx(1 / 3)
    assert metrics["text_to_cloud_chance_at_1"] == pytest.approx(4 / 12)
    assert metrics["cloud_to_image_chance_at_5"] == pytest.approx(5 / 12)
    assert metrics["cloud_to_text_recall_at_5"] == 1.0  # there are three
    assert all(0 <= metrics[f"{name}_recall_at_1"] <= 1 for name in sizes)
    assert "text: any shape of the same class text is right" in found["selection"]
    captions = run({**usual, "run": {**usual["run"], "name": "captions"}}, texts="caption")
    assert (
        captions["counts"]["texts"] == captions["counts"]["directions"]["text_to_cloud"]["queries"]
    )
    assert "same caption text" in captions["selection"]


class Ideal:
    """A model that gives the teachers' features of the very shape; it knows shapes by their sum."""

    def __init__(self, prepared: PreparedSet, texts: str) -> None:
        table = prepared.read("test", views=True)
        clouds = torch.tensor(points_to_numpy(table["points"])).float()
        self.sums = clouds.abs().sum(dim=(1, 2))
        image = create_image_teacher(f"descriptor:{IMAGE}")
        text = create_text_teacher(f"descriptor:{TEXT}")
        views = [[views[0]] for views in table["views"].to_pylist()]
        transform = ImageTransform(image_size=image.image_size)
        pictures = load_images(views, range(len(views)), epoch=0, seed=0, transform=transform)
        self.image = image.encode(pictures)
        if texts == "caption":
            self.text = text.encode(table["caption"].to_pylist())
        else:
            self.text = class_vectors(text_bank(text, table["category"].to_pylist()))

    def __call__(self, model: object, points: torch.Tensor) -> dict[str, torch.Tensor]:
        sums = points.abs().sum(dim=(1, 2))
        of = (sums[:, None] - self.sums).abs().argmin(dim=1)
        return {"text": self.text[of], "image": self.image[of]}


@pytest.mark.parametrize("texts", ["category", "caption"])
def test_a_model_that_gives_the_teachers_features_finds_everything_first(
    usual: Options, tiny_prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch, texts: str
) -> None:
    monkeypatch.setattr("recon_ray.tasks.retrieve.search._project", Ideal(tiny_prepared, texts))
    usual["data"] |= {"num_points": tiny_prepared.num_points, "normalize": "none"}
    metrics = run(usual, texts=texts)["metrics"]
    directions = ("cloud_to_text", "text_to_cloud", "cloud_to_image", "image_to_cloud")
    assert {name: metrics[f"{name}_recall_at_1"] for name in directions} == dict.fromkeys(
        directions, 1.0
    )


def test_queries_are_written(usual: Options, tiny_prepared: PreparedSet, tmp_path: Path) -> None:
    table = tiny_prepared.read("test", views=True)
    np.save(tmp_path / "shape.npy", points_to_numpy(table["points"])[5].astype(np.float32))
    (tmp_path / "view.png").write_bytes(table["views"][0].as_py()[0])
    files = [str(tmp_path / "shape.npy"), str(tmp_path / "view.png")]
    found = run({**usual, "query": ["a swivel chair", *files]}, top_k=3)
    assert found["counts"]["shapes"] == 24 + 12  # a query searches all splits
    assert found["selection"].startswith("36 shapes of train and test; of these the 3 of")
    rows = pq.read_table(tmp_path / "runs" / "run" / "retrieved.parquet").to_pylist()
    assert rows == found["found"]
    assert [row["rank"] for row in rows] == [1, 2, 3] * 3
    assert [row["kind"] for row in rows[::3]] == ["words", "shape", "picture"]
    shape = rows[3]
    assert shape["sample_id"] == table["sample_id"][5].as_py()
    assert shape["object_id"] == table["object_id"][5].as_py()
    assert shape["cosine"] == pytest.approx(1.0, abs=1e-5)
    cosines = [row["cosine"] for row in rows[:3]]
    assert cosines == sorted(cosines, reverse=True)


def test_pictures_may_be_features_that_the_source_has_shipped(
    usual: Options, tiny_prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_prepared.path, tmp_path / "set")
    prepared = ship_features(PreparedSet.open(tmp_path / "set"))
    shipped = torch.tensor(points_to_numpy(prepared.read("test", features=True)["image_features"]))
    ideal = Ideal(tiny_prepared, "category")
    ideal.image = shipped[:, 1].float()  # the others are zeros
    monkeypatch.setattr("recon_ray.tasks.retrieve.search._project", ideal)
    usual["init_from"] = str(save(tmp_path / "shipped.safetensors", image_dim=6))
    usual["data"] |= {"num_points": prepared.num_points, "normalize": "none"}
    usual["data"]["path"] = str(prepared.path)
    usual["teacher"]["image"]["name"] = "source"
    metrics = run(usual)["metrics"]
    assert metrics["cloud_to_image_recall_at_1"] == metrics["image_to_cloud_recall_at_1"] == 1.0


def test_blanks_are_no_query(usual: Options) -> None:
    with pytest.raises(ValueError, match="at least 1 character"):
        run({**usual, "query": "  "})


def test_blanks_are_no_caption(usual: Options, tmp_path: Path) -> None:
    own = prepare_rows(
        tmp_path,
        random_rows(("test", "", "a red chair"), ("test", "", ""), ("test", "", "a mug")),
        num_points=70,
        views=0,
    )
    usual["data"]["path"] = str(own.path)
    message = r"retrieval\.texts=caption: 1 of 3 .* have no caption \(first: shape001\)"
    with pytest.raises(ConfigError, match=message):
        run(usual, texts="caption")


def test_one_side_is_left_out_where_it_is_not_there(usual: Options, tmp_path: Path) -> None:
    weights = save(tmp_path / "text.safetensors", image_dim=None)
    found = run({**usual, "init_from": str(weights)})
    assert {*found["counts"]["directions"]} == {"cloud_to_text", "text_to_cloud"}
    usual["teacher"]["text"]["name"] = None
    found = run({**usual, "run": {**usual["run"], "name": "pictures"}})
    assert {*found["counts"]["directions"]} == {"cloud_to_image", "image_to_cloud"}


def test_a_limit_is_the_same_shapes_on_every_side(usual: Options) -> None:
    found = run({**usual, "data": {**usual["data"], "limit": 5}})
    sizes = found["counts"]["directions"]
    assert found["counts"]["shapes"] == 5
    assert sizes["image_to_cloud"] == sizes["cloud_to_image"] == {"queries": 5, "gallery": 5}
    assert sizes["cloud_to_text"] == {"queries": 5, "gallery": 3}


def test_pictures_of_a_cache_and_of_the_teacher_measure_the_same(
    usual: Options, tiny_prepared: PreparedSet, tmp_path: Path
) -> None:
    copied = tmp_path / "set"
    shutil.copytree(tiny_prepared.path, copied)
    usual["data"]["path"] = str(copied)
    online = run(usual)
    teacher = {"image": {"name": f"descriptor:{IMAGE}", "augment": "none"}, "text": {"name": None}}
    config = CacheTeachersConfig(
        run={"name": "cache", "storage": str(tmp_path / "runs")},
        cluster={"workers": 0},
        data={"path": str(copied)},
        teacher=teacher,
        cache={"splits": ("test",)},
    )
    run_config("cache_teachers", config)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recon_ray.tasks.retrieve.search.encode_pictures", lambda *a: calls.append(a))
        cached = run({**usual, "run": {**usual["run"], "name": "cached"}})
    assert calls == []
    assert cached["metrics"] == pytest.approx(online["metrics"])


def test_incomplete_sets_are_refused(usual: Options, tiny_parts: PreparedSet) -> None:
    usual["data"] = {"path": str(tiny_parts.path), "num_points": 64}
    with pytest.raises(ConfigError, match=r"=caption: 5 of 5 shapes of test .* have no caption"):
        run(usual, texts="caption")
    usual["teacher"]["text"]["name"] = None
    with pytest.raises(ConfigError, match="there are neither texts nor pictures"):
        run(usual)
