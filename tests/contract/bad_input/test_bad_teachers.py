"""Teacher caches that cannot be made or used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job_runs import QUICK, Jobs, write_clouds
from job_samples import prepare_rows, random_rows

from recon_ray.data.format.prepared import PreparedSet


@pytest.fixture
def cache(jobs: Jobs, copy: Path) -> Path:
    """The cache of the tiny configuration's image teacher in a set of its own."""
    jobs.cache_teachers(f"data.path={copy}", "run.seed=3").done()
    shutil.rmtree(jobs.runs)
    return next((copy / "teachers").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("cache.copies=0", "cache.copies .*: expected an integer >= 1"),
        ("cache.splits=[train,val]", "cache.splits=val: .* has the splits train, test; choose one"),
        ("teacher.image.name=source", "teacher.image.name=source: .* are in the data set already"),
        ("teacher.image.name=null", "teacher.image.name and teacher.text.name are both null"),
        ("teacher.image.name=descriptor:x", "teacher.image: Teacher 'descriptor:x'"),
        ("data.path=nowhere", "data.path=nowhere: no such folder"),
        ("data.mode=shared", "data.mode"),
    ],
)
def test_wrong_teacher_options_are_refused(
    jobs: Jobs, copy: Path, options: str, message: str
) -> None:
    jobs.cache_teachers(f"data.path={copy}", *options.split()).refused(2, message)
    assert jobs.left_behind() == []
    assert not (copy / "teachers").exists()


def test_a_set_without_views_has_nothing_to_cache(jobs: Jobs) -> None:
    jobs.custom(write_clouds(jobs.folder)).done()
    jobs.cache_teachers(f"data.path={jobs.folder / 'set'}").refused(
        2, "teacher.image.name: .* holds no images"
    )


def test_blanks_are_no_caption_for_a_teacher(jobs: Jobs) -> None:
    rows = random_rows(*[("train", "", "a mug")] * 8, ("train", "", " "), ("test", "", ""))
    own = prepare_rows(jobs.folder, rows, num_points=70, views=0)
    given = [f"data.path={own.path}", "data.text=caption", "teacher.image.name=null"]
    message = r"data\.text=caption: 1 of 9 .* of train in .* have no caption \(first: shape008\)"
    jobs.pretrain(*given, *QUICK).refused(2, message)
    jobs.cache_teachers(*given, "teacher.text.name=descriptor:8").refused(2, message)
    assert jobs.left_behind() == []
    jobs.pretrain(*given, *QUICK, "teacher.text.name=null").done()


def test_a_damaged_view_ends_the_teachers_with_its_name(jobs: Jobs, copy: Path) -> None:
    file = copy / "views" / "train" / "part-00001-of-00004.parquet"
    table = pq.read_table(file)
    column = pa.array([[b"none", b"none"]] * len(table), table.schema.field("views").type)
    pq.write_table(table.set_column(1, table.schema.field("views"), column), file)
    jobs.cache_teachers(f"data.path={copy}").refused(
        1, "part-00001-of-00004.parquet: is damaged or was changed"
    )
    done = jobs.cache_teachers(f"data.path={copy}", "data.verify=false")
    done.refused(1, "part-00001-of-00004.parquet: Sample 7: a view of 4 bytes is not a readable")
    assert not list(copy.glob("teachers/*/_manifest.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "teacher.image.bgr=true",
            r"bgr is False there, True is asked for\); make them: python jobs/cache_.* .*bgr=true",
        ),
        ("teacher.image.name=descriptor:16", "has no features of descriptor:16 as configured"),
        ("teacher.image.name=source", "teacher.image.name=source: .* has no image features of"),
        ("teacher.text.name=source", "teacher.text.name=source: .* has no text features of"),
        ("teacher.image.cache=nowhere", "teacher.image.cache=nowhere: no such folder"),
        ("teacher.image.mode=online teacher.image.cache=x", "needs teacher.image.mode=cached"),
    ],
)
def test_absent_features(jobs: Jobs, copy: Path, cache: Path, options: str, message: str) -> None:
    assert cache.is_dir()
    given = (f"data.path={copy}", "teacher.image.mode=cached", *options.split())
    jobs.pretrain(*QUICK, *given).refused(2, message)
    assert jobs.left_behind() == []


def test_another_cache(jobs: Jobs, copy: Path, cache: Path, tiny_prepared: PreparedSet) -> None:
    given = (*QUICK, "teacher.image.mode=cached", f"teacher.image.cache={cache}")
    jobs.pretrain(*given, f"data.path={copy}").done()
    other = jobs.pretrain(
        *given, f"data.path={copy}", "run.name=b", "teacher.image.sha256=" + 64 * "0"
    )
    other.refused(2, "it does not fit .teacher.sha256 is 1317247c30a3... there, 000000000000... is")
    record = json.loads((cache / "_manifest.json").read_text())
    record["identity"]["set"]["views_sha256"] = 64 * "1"
    (cache / "_manifest.json").write_text(json.dumps(record))
    jobs.pretrain(*given, f"data.path={copy}", "run.name=c").refused(2, "set.views_sha256 is 1111")


def test_a_damaged_or_partial_cache_is_refused(jobs: Jobs, copy: Path, cache: Path) -> None:
    cached = ("teacher.image.mode=cached", f"teacher.image.cache={cache}")
    given = (*QUICK, f"data.path={copy}", *cached)
    shard = cache / "train" / "part-00000-of-00004.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    jobs.pretrain(*given).refused(1, "part-00000-of-00004.parquet: is damaged or was changed")
    record = json.loads((cache / "_manifest.json").read_text())
    record["splits"] = {"test": record["splits"]["train"]}
    (cache / "_manifest.json").write_text(json.dumps(record))
    jobs.pretrain(*given).refused(
        2, r"cache=.*: it does not fit \(it holds test, not 'train'\); .* make another: python"
    )
    (cache / "_manifest.json").unlink()
    jobs.pretrain(*given).refused(1, "is not a finished teacher cache")
