"""Interrupted and repaired sets: only what is missing is built, to the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import data_samples
import numpy as np
import pytest
from data_samples import (
    OPTIONS,
    SOURCE,
    as_version_2,
    cloud,
    file_hashes,
    read_manifest,
    write_clouds,
)

from recon_ray.data.format.files import read_table
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.runners import run_serial
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.custom import CustomSource
from recon_ray.errors import DataError

CLOUDS = PrepareOptions(num_points=32, samples_per_shard=4)

# Reports "in write" when it is in the middle of the third shard, and then waits to be killed.
CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[2])
from data_samples import OPTIONS, SOURCE
from recon_ray.data.prepare import build_set as module

def stop_in_write(descriptor):
    count[0] += 1
    if count[0] == 8:  # the plan, then three files for each shard
        print("in write", flush=True)
        time.sleep(600)

count = [0]
os.fsync = stop_in_write
module.prepare(SOURCE, sys.argv[1], OPTIONS)
"""


# Reports the process of a worker, which keeps its task until the whole job is killed.
POOL = """
import os, sys, time
from recon_ray.data.prepare.runners import run_processes

def wait(task):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    list(run_processes(2)(wait, [1, 2]))
"""


def _stamps(root: Path) -> dict[str, tuple[int, int]]:
    files = [p for kind in ("geometry", "views") for p in (root / kind).rglob("*.parquet")]
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_ino) for p in files}


def _counting(built: list[str]):
    def run(build, tasks):
        built.extend(f"{task.split}/{task.name}" for task in tasks)
        return run_serial(build, tasks)

    return run


def test_a_killed_job_continues_with_the_missing_shards(tiny_set, tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(Path(data_samples.__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout.readline() == "in write\n"
        child.kill()
    assert len(list(tmp_path.rglob(".tmp-*"))) == 1
    assert not (tmp_path / "_manifest.json").exists()
    before = _stamps(tmp_path)
    assert len(before) == 4  # two shards, points and views

    built: list[str] = []
    manifest = prepare(SOURCE, tmp_path, OPTIONS, run=_counting(built))
    assert len(built) == 2
    after = _stamps(tmp_path)
    assert {path: after[path] for path in before} == before
    assert not list(tmp_path.rglob(".tmp-*"))
    assert file_hashes(manifest) == file_hashes(read_manifest(tiny_set))


def _gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{process}/stat")  # where nobody reaps orphans they remain as zombies
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_a_killed_job_leaves_no_workers(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(POOL)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as job:
        workers = [int(job.stdout.readline()) for _ in range(2)]
        job.kill()
    deadline = time.monotonic() + 30
    while not all(map(_gone, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(_gone, workers))


@pytest.mark.parametrize("kind", ["geometry", "views", "_records"])
def test_a_deleted_file_rebuilds_its_shard_only(tmp_path, kind):
    first = prepare(SOURCE, tmp_path, OPTIONS)
    lost = sorted((tmp_path / kind / "train").iterdir())[1]
    lost.unlink()
    before = _stamps(tmp_path)
    built: list[str] = []
    assert prepare(SOURCE, tmp_path, OPTIONS, run=_counting(built)) == first
    assert built == [f"train/{lost.stem}.parquet"]
    after = _stamps(tmp_path)
    kept = {path: stamp for path, stamp in before.items() if lost.stem not in path}
    assert {path: after[path] for path in kept} == kept
    PreparedSet.open(tmp_path).verify()


def test_a_finished_set_is_left_alone(tmp_path):
    first = prepare(SOURCE, tmp_path, OPTIONS)
    before = _stamps(tmp_path)
    built: list[str] = []
    assert prepare(SOURCE, tmp_path, OPTIONS, run=_counting(built)) == first
    assert built == []
    assert _stamps(tmp_path) == before


def test_a_set_that_an_earlier_release_began_is_continued(tiny_set, tmp_path):
    root = Path(shutil.copytree(tiny_set, tmp_path / "set"))
    as_version_2(root)
    plan = root / "plan.json"
    shards = [{"shard": "train/part-00000-of-00003.parquet", "first_sample_id": 0}]
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "shards": shards}))
    for path in (root / "_records").rglob("*.json"):
        record = json.loads(path.read_text())
        del record["number"]
        path.write_text(json.dumps(record))
    before, built = _stamps(root), []
    expected = read_manifest(tiny_set)
    assert prepare(SOURCE, root, OPTIONS, run=_counting(built)) == expected  # a finished one
    assert (built, _stamps(root)) == ([], before)

    as_version_2(root)
    (root / "_manifest.json").unlink()
    (root / "views" / "train" / "part-00001-of-00003.parquet").unlink()
    assert prepare(SOURCE, root, OPTIONS, run=_counting(built)) == expected
    assert built == ["train/part-00001-of-00003.parquet"]
    PreparedSet.open(root).verify()


def test_temporaries_of_dead_processes_are_deleted_and_others_kept(tmp_path):
    folder = tmp_path / "geometry" / "train"
    folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    stale, living = folder / f".tmp-{dead.pid}-x", folder / f".tmp-{os.getppid()}-x"
    stale.touch()
    living.touch()
    prepare(SOURCE, tmp_path, OPTIONS)
    assert not stale.exists()
    assert living.exists()


def _with_broken_file(folder: Path) -> tuple[CustomSource, Path]:
    """Nine clouds and one that cannot be read, of which a prepared set is made beside them."""
    write_clouds(folder / "in", [f"a/{i}" for i in range(9)])
    broken = folder / "in" / "a" / "9.npy"
    broken.write_bytes(bytes((folder / "in" / "a" / "0.npy").stat().st_size))
    source = CustomSource(folder / "in", test_fraction=0)
    assert prepare(source, folder / "out", CLOUDS)["quarantined"] == 1
    return source, broken


def _shard_with(root: Path, object_id: str) -> str:
    files = PreparedSet.open(root).splits["train"].geometry
    found = [f.name for f in files if object_id in read_table(f, None)["object_id"].to_pylist()]
    return f"train/{found[0]}"


@pytest.mark.parametrize("count", [80, 81])  # 80: of the size of the broken one
def test_a_repaired_file_rebuilds_its_shard_only(tmp_path, count):
    source, broken = _with_broken_file(tmp_path)
    np.save(broken, cloud(9, count))
    built: list[str] = []
    manifest = prepare(source, tmp_path / "out", CLOUDS, run=_counting(built))
    assert built == [_shard_with(tmp_path / "out", "a/9")]
    assert (manifest["rows"], manifest["quarantined"]) == (10, 0)
    PreparedSet.open(tmp_path / "out").verify()
    assert (tmp_path / "out" / "_quarantine.jsonl").read_text() == ""
    built.clear()
    assert prepare(source, tmp_path / "out", CLOUDS, run=_counting(built)) == manifest
    assert built == []
    # The same rows as those of a set that was made of the repaired files.
    fresh = prepare(source, tmp_path / "fresh", CLOUDS)
    assert file_hashes(manifest) == file_hashes(fresh)


def test_a_repair_that_fails_is_repaired_again(tmp_path):
    source, broken = _with_broken_file(tmp_path)
    broken.write_bytes(b"still no array")
    assert prepare(source, tmp_path / "out", CLOUDS)["quarantined"] == 1
    np.save(broken, cloud(9))
    assert prepare(source, tmp_path / "out", CLOUDS)["quarantined"] == 0


def test_only_what_was_left_out_may_change(tmp_path):
    source, broken = _with_broken_file(tmp_path)
    before = broken.read_bytes()
    np.save(broken, cloud(9, 81))
    np.save(tmp_path / "in" / "a" / "3.npy", cloud(3, 82))
    with pytest.raises(DataError, match=r"holds another prepared set \(source\.listing"):
        prepare(source, tmp_path / "out", CLOUDS)
    np.save(tmp_path / "in" / "a" / "3.npy", cloud(3))
    prepare(source, tmp_path / "out", CLOUDS)
    for content in (before, b"another"):  # it is a good file now
        broken.write_bytes(content)
        with pytest.raises(DataError, match=r"holds another prepared set \(source\.listing"):
            prepare(source, tmp_path / "out", CLOUDS)
