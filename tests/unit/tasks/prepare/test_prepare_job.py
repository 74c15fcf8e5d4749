"""The driver of the prepare job: cards, archives, drawn episodes, where shards are built."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
from data_samples import write_clouds

from recon_ray.cli import run_job
from recon_ray.config.sections.common import ClusterSection
from recon_ray.config.sections.data import PrepareSection
from recon_ray.data.format.prepared import PreparedSet, read_episodes
from recon_ray.data.prepare.build_set import prepare as build_set
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.procedural.synthetic import SyntheticSource
from recon_ray.errors import ConfigError, DataError
from recon_ray.protocols import protocol_flags
from recon_ray.tasks.prepare import job as driver
from recon_ray.tasks.prepare.config import PrepareConfig
from recon_ray.tasks.registry import Job, JobResult

NUMBERS = itertools.count()


def _job(folder: Path, **options: object) -> Job[PrepareConfig]:
    name = f"run{next(NUMBERS)}"
    config = PrepareConfig(run={"storage": str(folder / "runs"), "name": name}, **options)
    return Job("prepare", config, {}, ())


def _prepare(folder: Path, **options: object) -> JobResult:
    return driver.prepare(_job(folder, **options))


def _clouds(folder: Path) -> Path:
    write_clouds(folder, [f"c{index % 2}/{index}" for index in range(6)], count=40)
    return folder


OPTIONS = {"num_points": 32, "views": 0, "processes": 1}


# --- Cards ---------------------------------------------------------------------------------------
def _run(*arguments: str) -> int:
    return run_job("prepare", arguments)


@pytest.mark.parametrize("arguments", [("--cards", "modelnet10"), ("--cards=modelnet10",)])
def test_a_card_is_printed_by_name(capsys, arguments):
    assert _run(*arguments) == 0
    out, err = capsys.readouterr()
    assert "modelnet10" in out
    assert "3,991" in out
    assert "modelnet40" not in out.splitlines()[0]
    assert err == ""


def test_all_cards_are_printed_and_others_refused_with_the_nearest(capsys):
    assert _run("--cards") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("shapenet55", "scanobjectnn_pb_t50_rs", "toilet"))
    assert _run("--help") == 0
    assert "--cards [NAME]    describe the published data sets" in capsys.readouterr().out
    assert _run("--cards", "modelnet4") == 2
    assert "did you mean modelnet40?" in capsys.readouterr().err
    assert _run("--card") == 2
    assert "--card: unknown flag; did you mean --cards?" in capsys.readouterr().err


# --- What is left to the source -------------------------------------------------------------------
@pytest.mark.parametrize(
    ("source", "asked", "views"),
    [
        ("synthetic", None, 4),
        ("custom", None, 4),
        ("shapenet55", None, 1),
        ("modelnet40", None, 0),
        ("modelnet40", 6, 6),
        ("custom", 0, 0),
    ],
)
def test_sets_that_are_not_pretrained_with_images_get_none(source, asked, views):
    assert driver.row_options(PrepareSection(views=asked), source).views == views


@pytest.mark.parametrize(
    ("source", "protocol", "size", "stored"),
    [
        ("shapenet55", "reference", None, ("stretch", 256)),
        ("shapenet55", "reference", 64, ("stretch", 64)),
        ("shapenet55", "sound", None, ("pad", 224)),
        ("custom", "reference", None, ("pad", 224)),
    ],
)
def test_pictures_of_their_own_are_stored_by_card_and_protocol(source, protocol, size, stored):
    options = driver.row_options(PrepareSection(image_size=size), source, protocol_flags(protocol))
    assert (options.image_fit, options.image_size) == stored


def test_the_result_names_the_card_and_the_published_counts(tmp_path):
    manifest = {
        "splits": {"train": {"rows": 3, "num_shards": 1, "bytes": 2_000_000}},
        "classes": ["a"], "num_points": 8, "quarantined": 0, "excluded": 2,
        "card": {"name": "x", "title": "X Set", "counts": {"train": 9}, "license": "none"},
    }  # fmt: skip
    lines = driver.summary(manifest).splitlines()
    assert lines[1].split() == ["train", "3", "9", "1", "2.0"]
    assert "2 left out by rule" in lines[2]
    assert lines[3] == "data set: X Set (x); terms: none"
    old = {key: value for key, value in manifest.items() if key not in ("card", "excluded")}
    assert driver.summary(old).splitlines()[1].split() == ["train", "3", "-", "1", "2.0"]


# --- Where shards are built -----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("parallel", "address", "environment", "on_ray"),
    [
        ("auto", None, None, False),
        ("auto", "127.0.0.1:1", None, True),
        ("auto", None, "127.0.0.1:1", True),
        ("local", "127.0.0.1:1", "127.0.0.1:1", False),
        ("ray", None, None, True),
    ],
)
def test_ray_is_used_to_join_a_cluster(monkeypatch, parallel, address, environment, on_ray):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    options = PrepareSection(parallel=parallel)
    run = driver._runner(options, ClusterSection(address=address))
    assert (run.__module__ == "recon_ray.cluster.build_pool") is on_ray
    assert driver._runner(options, None).__module__ == "recon_ray.data.prepare.runners"


# --- Archives -------------------------------------------------------------------------------------
def _archive(tmp_path: Path) -> Path:
    clouds = _clouds(tmp_path / "clouds")
    return Path(shutil.make_archive(str(tmp_path / "clouds"), "gztar", clouds))


def test_an_archive_is_cleared_away_unless_the_job_fails(tmp_path):
    archive, output = _archive(tmp_path), tmp_path / "set"
    how = {"source": "custom", "input": archive, "output": output, "prepare": OPTIONS}
    _prepare(tmp_path, **how)
    assert PreparedSet.open(output).manifest["rows"] == 6
    assert not (output / ".source").exists()
    before = (output / "_manifest.json").read_bytes()
    _prepare(tmp_path, **how)  # a finished set is compared with the archive again
    assert (output / "_manifest.json").read_bytes() == before
    assert not (output / ".source").exists()
    output = tmp_path / "few"
    few = {**OPTIONS, "num_points": 64, "max_quarantine_fraction": 0}
    with pytest.raises(DataError, match="6 of 6 samples are unreadable"):
        _prepare(tmp_path, source="custom", input=archive, output=output, prepare=few)
    assert len(list((output / ".source").rglob("*.npy"))) == 6


@pytest.mark.parametrize(
    ("folder", "split"),
    [("mine", "train"), ("mine/test", "test"), ("test", "test")],  # a split is no wrapping
)
def test_an_archive_of_a_folder_is_that_folder(tmp_path, folder, split):
    base = tmp_path / "base"
    _clouds(base / folder)
    (base / "__MACOSX" / folder / "c0").mkdir(parents=True)
    (base / "__MACOSX" / folder / "c0" / "._0.npy").write_bytes(b"\0\5\x16\7")
    (base / "README.txt").write_text("1 2 3\n")  # a note, although it could be a cloud
    archive = Path(shutil.make_archive(str(tmp_path / "shapes"), "zip", base))
    options = {**OPTIONS, "test_fraction": 0.0}
    output = tmp_path / "set"
    _prepare(tmp_path, source="custom", input=archive, output=output, prepare=options)
    manifest = PreparedSet.open(output).manifest
    assert (manifest["rows"], manifest["quarantined"]) == (6, 0)
    assert manifest["classes"] == ["c0", "c1"]
    assert list(manifest["splits"]) == [split]


# --- Few-shot episodes drawn from a prepared set ------------------------------------------------
@pytest.fixture(scope="module")
def ten_classes(tmp_path_factory) -> Path:
    categories = tuple(SyntheticSource().categories[:10])
    source = SyntheticSource(train_per_class=20, test_per_class=20, categories=categories)
    root = tmp_path_factory.mktemp("ten") / "set"
    build_set(source, root, PrepareOptions(num_points=8))
    return root


def test_episodes_are_drawn_from_a_prepared_set_and_read_back(ten_classes, tmp_path):
    def draw(name: str, seed: int) -> JobResult:
        how = {"source": "fewshot", "input": ten_classes, "prepare": {"seed": seed}}
        return _prepare(tmp_path, output=tmp_path / name, **how)

    assert "40 episodes" in draw("a", 0).table
    episodes = read_episodes(tmp_path / "a")
    ids = set(PreparedSet.open(ten_classes).read("train")["object_id"].to_pylist())
    rows = [r for r in episodes.to_pylist() if (r["way"], r["shot"], r["fold"]) == (5, 10, 3)]
    train = [row for row in rows if row["split"] == "train"]
    assert (len(train), len(rows) - len(train)) == (50, 100)
    assert {row["object_id"] for row in train} <= ids
    record = json.loads((tmp_path / "a" / "_episodes.json").read_text())
    assert record["manifest_sha256"] == PreparedSet.open(ten_classes).manifest_hash
    verified = _prepare(tmp_path, verify=tmp_path / "a")
    assert "40 episodes, with the recorded hash" in verified.table
    draw("b", 0)
    assert read_episodes(tmp_path / "b").equals(episodes)
    draw("c", 1)
    assert not read_episodes(tmp_path / "c").equals(episodes)
    with pytest.raises(ConfigError, match=r"holds other episodes \(seed: 0 found, 1 asked\)"):
        draw("a", 1)
    content = bytearray((tmp_path / "b" / "episodes.parquet").read_bytes())
    content[50] ^= 1
    (tmp_path / "b" / "episodes.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"episodes\.parquet: is damaged or was changed"):
        _prepare(tmp_path, verify=tmp_path / "b")
    with pytest.raises(ConfigError, match="holds a prepared set; give the episodes another"):
        _prepare(tmp_path, source="fewshot", input=ten_classes, output=ten_classes)
