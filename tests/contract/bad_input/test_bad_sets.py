"""Damaged and unsuitable prepared sets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from job_runs import QUICK, Jobs, change_manifest, first_shard, flip, write_clouds

DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "other-version",
        lambda root: change_manifest(root, lambda manifest: manifest.update(schema_version=9)),
        r"_manifest\.json: has schema version 9, but this package reads versions 1, 2 and 3; ",
    ),
    (
        "no-splits",
        lambda root: change_manifest(root, lambda manifest: manifest.pop("splits")),
        r"_manifest\.json: is not a readable manifest \(KeyError: 'splits'\); prepare it again",
    ),
    (
        "no-manifest",
        lambda root: (root / "_manifest.json").unlink(),
        r"copy: is not a complete prepared set \(_manifest\.json is missing\); run the prepare job",
    ),
    (
        "missing-shard",
        lambda root: first_shard(root).unlink(),
        r"part-00000-of-0000\d\.parquet: the shard is missing; run the prepare job again to rebu",
    ),
    (
        "cut-shard",
        lambda root: os.truncate(first_shard(root), 900),
        r"part-00000-of-0000\d\.parquet: is damaged or was changed \(its SHA-256 is not the manif",
    ),
    (
        "flipped-points",  # decodes all the same
        lambda root: flip(first_shard(root), first_shard(root).stat().st_size // 2),
        r"geometry/train/part-00000.*: is damaged or was changed \(its SHA-256 is not the manif.*"
        r"delete it and repeat the job that made it, which rebuilds it",
    ),
    (
        "flipped-views",
        lambda root: flip(first_shard(root, "views"), 200),
        r"views/train/part-00000.*: is damaged or was changed",
    ),
    (
        "flipped-test",
        lambda root: flip(first_shard(root, split="test"), 200),
        r"geometry/test/part-00000.*: is damaged or was changed",
    ),
]


@pytest.mark.parametrize(
    ("damage", "message"), [row[1:] for row in DAMAGES], ids=[row[0] for row in DAMAGES]
)
def test_a_damaged_set_is_found_before_training(
    jobs: Jobs, copy: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(copy)
    jobs.pretrain(f"data.path={copy}", "data.verify=all").refused(1, message)
    assert jobs.left_behind() == []
    jobs.prepare(f"verify={copy}").refused(1, message)
    assert jobs.left_behind() == []


#: Damages that the columns of a few bytes show, which are read without a comparison of the hash.
WHEN_READ = {
    "cut-shard": r"part-00000-of-0000\d\.parquet: cannot be read as Parquet; delete it and repeat ",
}


@pytest.mark.parametrize(
    ("damage", "message"),
    [(damage, WHEN_READ.get(name, message)) for name, damage, message in DAMAGES],
    ids=[row[0] for row in DAMAGES],
)
def test_a_damaged_shard_ends_the_training_that_reads_it(
    jobs: Jobs, copy: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(copy)
    jobs.pretrain(f"data.path={copy}", "train.epochs=1").refused(1, message)


def test_verifying_can_be_left_out(jobs: Jobs, copy: Path) -> None:
    flip(first_shard(copy, split="test"), 200)
    jobs.pretrain(f"data.path={copy}", "data.verify=false", *QUICK).done()


def test_a_whole_set_verifies_and_an_absent_one_is_status_2(jobs: Jobs, copy: Path) -> None:
    assert jobs.prepare(f"verify={copy}").done()
    jobs.prepare("verify=/absent/set").refused(2, r"verify=/absent/set: no such folder; give the")


def test_a_set_of_which_some_shapes_have_no_class_is_not_taught_with_classes(jobs: Jobs) -> None:
    clouds, table = write_clouds(jobs.folder), jobs.folder / "table.csv"
    names = sorted(str(path.relative_to(clouds)) for path in clouds.rglob("*.npy"))
    rows = [f"{name},{'' if i == 3 else 'ab'[i % 2]},train" for i, name in enumerate(names)]
    table.write_text("file,category,split\n" + "\n".join(rows))
    jobs.custom(clouds, f"prepare.table={table}").done()
    shutil.rmtree(jobs.runs)
    options = (f"data.path={jobs.folder / 'set'}", "teacher.image.name=null", *QUICK)
    outcome = jobs.pretrain(*options)
    outcome.refused(2, r"teacher\.text\.name: 1 of 12 training shapes of .*/set have no class; pr")
    assert jobs.left_behind() == []
    outcome = jobs.pretrain(*options, "data.text=caption")  # an empty one is no text either
    outcome.refused(
        2, r"data\.text=caption: 1 of 12 shapes of train in .* have no caption \(first: a/0"
    )
    jobs.pretrain(*options, "teacher.text.name=null").done()


def test_pictures_are_asked_for_where_there_are_none(jobs: Jobs) -> None:
    jobs.custom(write_clouds(jobs.folder)).done()
    shutil.rmtree(jobs.runs)
    absent = "teacher.image.name=timm:vit_tiny_patch16_224:/absent.safetensors"  # never looked for
    outcome = jobs.pretrain(f"data.path={jobs.folder / 'set'}", "eval.enabled=false", absent)
    outcome.refused(2, r"teacher\.image\.name: .*/set holds no images; set teacher\.image\.name=nu")
    assert jobs.left_behind() == []
