"""Teachers of a pre-training: online, from a cache, and from the source, with the same results."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from data_samples import read_manifest
from job_samples import changed, run_config
from source_features import ship_features

from recon_ray.cli import run_job
from recon_ray.config.loader import load
from recon_ray.data.format.files import write_json, write_table
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.loading.batches import IndexedTable, make_batch
from recon_ray.errors import ConfigError, DataError
from recon_ray.points.random import SampleGenerator
from recon_ray.tasks.cache_teachers.cache_shards import CaptionTask
from recon_ray.tasks.cache_teachers.config import CacheTeachersConfig
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.pretrain.job import make_task, open_set
from recon_ray.tasks.teacher_features import cache_command, make_text_teacher

CONFIGS = Path(__file__).resolve().parents[4] / "configs"
COPIES = 2


@pytest.fixture
def copy(tiny_prepared: PreparedSet, tmp_path: Path) -> PreparedSet:
    return PreparedSet.open(shutil.copytree(tiny_prepared.path, tmp_path / "set"))


def with_options(config: PretrainConfig, copy: PreparedSet, **image: object) -> PretrainConfig:
    values = config.model_dump()
    values["data"]["path"] = str(copy.path)
    values["teacher"]["image"] |= {"augment": "reference", **image}
    return PretrainConfig(**values)


def make_cache(config: PretrainConfig, seed: int = 3, **cache: object) -> dict[str, float]:
    image = config.teacher.image.model_dump(exclude={"mode", "cache", "augment_on"})
    text = config.teacher.text.model_dump()
    settings = CacheTeachersConfig(
        run={"storage": config.run.storage, "name": "cache", "seed": seed},
        cluster={"workers": 0},
        data={"path": config.data.path, "text": config.data.text},
        teacher={"image": image, "text": text},
        cache={"copies": COPIES, **cache},
    )
    return run_config("cache_teachers", settings)[0]["metrics"]


def enriched(config: PretrainConfig, prepared: PreparedSet, epoch: int) -> dict[str, torch.Tensor]:
    """What the student is given of the first rows, by the path that training takes."""
    task = make_task(config, prepared)
    options = task.batch_options().for_device(torch.device("cpu"))
    views = options.images is not None
    rows = prepared.read("train", columns=["points", "label", "caption"], views=views)
    features = [[one.read()] for one in task.stored.features]
    pictures = [rows.select(["sample_id", "views"])] if views else None
    table = IndexedTable([rows.select(list(options.columns))], pictures, features)
    batch = make_batch(table.take(np.arange(9), options.needs), options, epoch=epoch)
    task.on_device(torch.device("cpu"))
    assert ("image_parameters" in batch) == (config.teacher.image.augment_on == "device")
    return task.prepare_on_device(
        batch, SampleGenerator(config.run.seed, batch["sample_id"], epoch)
    )


@pytest.mark.parametrize("augment", ["reference", "none"])
@pytest.mark.parametrize("text", ["category", "caption"])
def test_cached_features_are_those_of_the_online_teacher(tiny_config, copy, augment, text):
    online = with_options(tiny_config, copy, augment=augment)
    online = changed(online, data={"text": text})
    epochs = range(COPIES if augment == "reference" else COPIES + 3)
    before = [enriched(online, copy, epoch) for epoch in epochs]
    make_cache(online)
    cached = with_options(online, copy, augment=augment, mode="cached")
    for epoch, expected in zip(epochs, before, strict=True):
        found = enriched(cached, copy, epoch)
        assert found.keys() == expected.keys()
        assert torch.equal(found["points"], expected["points"])
        assert torch.equal(found["text_features"], expected["text_features"])
        # Half precision, on features of length 8.
        torch.testing.assert_close(
            found["image_features"], expected["image_features"], rtol=1e-3, atol=1e-4
        )


def test_many_captions_are_read_with_their_shapes_and_give_the_same_features(
    tiny_config, copy, monkeypatch, caplog
):
    online = with_options(tiny_config, copy)
    online = changed(online, data={"text": "caption"}, teacher={"image": {"name": None}})
    for place in ("config_checks", "pretrain.job"):
        monkeypatch.setattr(f"recon_ray.tasks.{place}.LARGEST_BANK", 2)
    expected = enriched(online, copy, epoch=0)
    teachers = make_task(online, copy).teachers
    assert "every worker encodes" in caplog.text
    make_cache(online)
    assert not list(Path(copy.path).glob("teachers/*/text_bank.parquet"))
    monkeypatch.setattr("recon_ray.tasks.pretrain.job.texts_of", lambda *_: pytest.fail("read"))
    task = make_task(online, copy)
    assert (task.texts, task.batch_options().captions) == ([], ())
    assert task.teachers == teachers  # a run that was begun with a bank goes on
    for epoch in (0, 5):
        found = enriched(online, copy, epoch)
        assert torch.equal(found["text_features"], expected["text_features"])
    assert make_cache(online)["images"] == 0
    file = next(Path(copy.path).glob("teachers/*/train/*.parquet"))
    file.write_bytes(b"damaged")
    with pytest.raises(DataError, match="missing or incomplete"):
        make_task(online, copy)


def test_a_shape_without_a_caption_is_named_where_it_is_encoded(tiny_config, copy, tmp_path):
    rows = copy.read("train").slice(0, 3)
    texts = pa.array(["one", " ", "one"])
    rows = rows.set_column(rows.column_names.index("caption"), "caption", texts)
    write_table(tmp_path, "part.parquet", rows)
    place = {"root": str(tmp_path), "file": "out.parquet", "key": "k", "units": 3}
    task = CaptionTask(**place, source=f"{tmp_path}/part.parquet", rows=3, batch_size=2)
    with pytest.raises(DataError, match=r"1 of 3 shapes have no caption \(first: "):
        task.encode(make_text_teacher(tiny_config.teacher.text))


def test_a_teacher_sees_the_same_whether_host_or_device_augments(tiny_config, copy):
    host, device = (
        enriched(with_options(tiny_config, copy, augment_on=where), copy, epoch=1)
        for where in ("host", "device")
    )
    assert torch.equal(host["points"], device["points"])
    found, expected = device["image_features"], host["image_features"]
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.999
    other = enriched(with_options(tiny_config, copy, augment_on="host"), copy, epoch=2)
    assert torch.nn.functional.cosine_similarity(found, other["image_features"]).min() < 0.999


def test_images_are_augmented_on_gpus_unless_the_configuration_says_otherwise(tiny_config, copy):
    places = {}
    for where in ("auto", "host", "device"):
        options = make_task(with_options(tiny_config, copy, augment_on=where), copy).batch_options()
        found = [options.for_device(torch.device(device)) for device in ("cpu", "cuda")]
        places[where] = [one.augment_on for one in found]
    assert places == {
        "auto": ["host", "device"],
        "host": ["host", "host"],
        "device": ["device", "device"],
    }
    plain = make_task(with_options(tiny_config, copy, augment="none"), copy).batch_options()
    assert plain.for_device(torch.device("cuda")).augment_on == "host"


def test_a_worker_of_a_cached_run_needs_no_teacher_and_decodes_nothing(
    tiny_config, copy, monkeypatch
):
    config = with_options(tiny_config, copy, mode="cached")
    make_cache(config)
    task = make_task(config, copy)
    assert task.image_teacher is None
    assert task._text_teacher is None
    assert task.batch_options().images is None
    assert task.architecture()["image_dim"] == task.architecture()["text_dim"] == 32
    assert (
        task.teachers["image"]["sha256"]
        == make_task(with_options(tiny_config, copy), copy).teachers["image"]["sha256"]
    )
    values = config.model_dump()
    for kind in ("image", "text"):
        values["teacher"][kind]["sha256"] = task.teachers[kind]["sha256"]

    def fail(*args, **kwargs):
        raise AssertionError("the teacher was made")

    monkeypatch.setattr("recon_ray.tasks.teacher_features.create_image_teacher", fail)
    monkeypatch.setattr("recon_ray.tasks.teacher_features.create_text_teacher", fail)
    assert make_task(PretrainConfig(**values), copy).teachers == task.teachers


def test_the_cache_of_the_runs_seed_is_preferred_and_another_serves_too(tiny_config, copy):
    config = with_options(tiny_config, copy, mode="cached")
    make_cache(config, seed=4, copies=3)
    assert make_task(config, copy).stored.image.shape == (3, 32)
    make_cache(config, seed=3, copies=1)
    assert make_task(config, copy).stored.image.shape == (1, 32)


def test_the_command_that_training_suggests_makes_what_it_needs(tiny_config, copy, tmp_path):
    given = (
        str(CONFIGS / "pretrain" / "base.yaml"), f"data.path={copy.path}", "data.num_points=64",
        "model.preset=nano", "teacher.image.name=descriptor:32", "teacher.text.name=descriptor:32",
        "teacher.image.mode=cached",
    )  # fmt: skip
    config = load(PretrainConfig, given).config

    def suggested() -> list[str]:
        with pytest.raises(
            ConfigError, match=r"make them: python jobs/cache_teachers\.py"
        ) as caught:
            make_task(config, copy)
        return shlex.split(str(caught.value).partition("make them: ")[2])[2:]

    words = suggested()
    here = ["cluster.workers=0", "cache.copies=1", f"run.storage={tmp_path}"]

    def cache(name: str, given: list[str]) -> int:
        given = [*given, *here, f"run.name={name}"]
        return run_job("cache_teachers", given)

    assert cache("half", [word for word in words if not word.startswith("cache.splits")]) == 0
    assert suggested() == words  # the half of it is not enough
    assert cache("whole", words) == 0
    found = make_task(config, copy).stored.image
    assert [path.parent.name for path in found.files] == ["train"] * 4 + ["test"] * 2


@pytest.mark.parametrize("size", ["base", "small", "tiny"])
def test_the_shipped_cache_is_the_one_of_the_shipped_pre_training(size):
    config = load(PretrainConfig, [str(CONFIGS / "pretrain" / f"{size}.yaml")]).config
    words = shlex.split(cache_command(config))[2:]
    shipped = [str(CONFIGS / "cache_teachers" / "published.yaml")]
    assert load(CacheTeachersConfig, words).config == load(CacheTeachersConfig, shipped).config


def test_a_second_run_of_the_job_encodes_nothing(tiny_config, copy):
    config = with_options(tiny_config, copy)
    assert make_cache(config)["images_encoded"] == 24 * COPIES
    shutil.rmtree(Path(config.run.storage))
    assert make_cache(config)["images_encoded"] == 0


def test_training_with_a_cache_gives_the_losses_of_training_without(tiny_config, copy):
    results = {}
    make_cache(with_options(tiny_config, copy), copies=4)
    for mode in ("online", "cached"):
        config = with_options(tiny_config, copy, mode=mode)
        named = changed(config, run={"name": mode}, eval={"enabled": False})
        _, folder = run_config("pretrain", named)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        results[mode] = [record["train/loss_image_distill"] for record in records]
    assert len(results["online"]) == 12
    assert results["cached"] == pytest.approx(results["online"], rel=1e-3)


def test_features_of_the_source_are_used_by_name(tiny_config, copy):
    prepared = ship_features(copy)
    config = with_options(tiny_config, prepared, name="source")
    values = config.model_dump()
    values["teacher"]["text"]["name"] = "source"
    config = PretrainConfig(**values)
    found = enriched(config, prepared, epoch=0)
    assert found["image_features"][:, 1].tolist() == list(range(9))  # never a row of zeros
    assert found["text_features"][:, 0].tolist() == [i + 0.5 for i in range(9)]
    task = make_task(config, prepared)
    assert task.architecture()["image_dim"] == 6
    assert task.architecture()["text_dim"] == 4
    assert task.teachers["image"]["tag"] == "of the source"


def test_a_card_spells_the_classes_out_for_the_text_teacher(tiny_config, copy):
    manifest = read_manifest(copy.path)
    manifest["card"] = {"classes": ["lamp", "other"], "texts": ["table lamp", "other thing"]}
    write_json(copy.path / "_manifest.json", manifest)
    prepared = PreparedSet.open(copy.path)
    assert prepared.classes == ["chair", "lamp", "mug"]
    task = make_task(with_options(tiny_config, prepared), prepared)
    assert task.texts == ["chair", "table lamp", "mug"]


@pytest.mark.parametrize(
    ("protocol", "views", "teacher", "told"),
    [
        ("reference", {"fit": "stretch", "size": 256}, {"bgr": True, "statistics": "imagenet"}, ()),
        (
            "reference",
            {"size": 224},
            {"bgr": True, "statistics": "imagenet"},
            ("was not prepared",),
        ),
        (
            "reference",
            {"fit": "stretch", "size": 224},
            {},
            ("was not", "bgr is false", "is teacher"),
        ),
        ("sound", {"size": 224}, {}, ()),
    ],
)
def test_other_pictures_than_the_published_ones_are_told(
    tiny_config, copy, monkeypatch, caplog, protocol, views, teacher, told
):
    config = with_options(tiny_config, copy, **teacher).model_copy(update={"protocol": protocol})
    for name, card in (("shapenet55", {"name": "shapenet55"}), ("own", None)):
        caplog.clear()
        manifest = {**copy.manifest, "card": card, "views": {**copy.manifest["views"], **views}}
        other = dataclasses.replace(copy, manifest=manifest)
        monkeypatch.setattr("recon_ray.tasks.pretrain.job.find_set", lambda *_, found=other: found)
        open_set(config)
        expected = told if name == "shapenet55" else ()
        assert ("not what the published code saw" in caplog.text) == bool(expected)
        assert all(part in caplog.text for part in expected)
