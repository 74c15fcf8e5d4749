"""Teacher caches: exactly what the teacher would say, resumable, refused where they do not fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import data_samples
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_samples import OPTIONS, SOURCE

from recon_ray.cluster.datasets import decoded_bytes
from recon_ray.cluster.encode_pool import EncodePool
from recon_ray.config.sections.common import ClusterSection
from recon_ray.data.format.files import write_table
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.schema import points_to_numpy
from recon_ray.data.loading.images import ImageTransform, load_images
from recon_ray.data.loading.shard_reader import ShardReader, SplitFiles
from recon_ray.data.loading.stream_order import Read
from recon_ray.data.prepare.build_set import prepare
from recon_ray.errors import ConfigError, DataError
from recon_ray.storage import Place
from recon_ray.tasks.cache_teachers.cache_shards import (
    TeacherWorker,
    build_cache,
    make_cache_plan,
    make_text_task,
    views_per_sample,
)
from recon_ray.teachers.bank import text_bank
from recon_ray.teachers.cache import (
    TeacherCache,
    cache_key,
    difference,
    find_caches,
    views_identity,
)
from recon_ray.teachers.create import create_image_teacher, create_text_teacher

COPIES = 3
TRANSFORM = ImageTransform(kind="reference", image_size=32)
CLEAN = ImageTransform(kind="none", image_size=32)

# Reports "in write" when it is in the middle of the second shard, and then waits to be killed.
CHILD = """
import os, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_cache_shards import build
from recon_ray.data.format.prepared import PreparedSet

def stop_in_write(descriptor):
    count[0] += 1
    if count[0] == 3:  # a shard and its record, then this shard
        print("in write", flush=True)
        time.sleep(600)

count = [0]
os.fsync = stop_in_write
build(PreparedSet.open(sys.argv[1]))
"""


def identity(prepared, transform=TRANSFORM, seed=5, **choices):
    teacher = create_image_teacher("descriptor:16")
    kept = {"copies": COPIES, "batch_size": 2, "precision": "fp32", **choices}
    return {
        "kind": "image",
        "teacher": teacher.identity,
        "preprocessing": {"augment": transform.kind, "bgr": transform.bgr},
        "set": views_identity(prepared),
        "choices": {"seed": seed, **kept},
    }


class Backwards(EncodePool):
    """A pool that takes the shards from the last to the first: the order has no effect."""

    def __init__(self):
        super().__init__(ClusterSection(workers=0), "cpu")

    def run(self, worker, tasks):
        return super().run(worker, tasks[::-1])


def build(prepared, splits=("train",), transform=TRANSFORM, encoded=None, threads=1, **choices):
    teacher = create_image_teacher("descriptor:16")
    plan = make_cache_plan(prepared, identity(prepared, transform, **choices), splits, transform)
    worker = TeacherWorker(lambda: teacher, torch.get_num_threads(), threads)
    done = build_cache(plan, Backwards(), lambda: worker, dim=teacher.dim)
    if encoded is not None:
        encoded += [task.file for task in done]
    return TeacherCache.open(plan.root)


def file_bytes(root: Place) -> dict[str, bytes]:
    return {file: (root / file).read_bytes() for file in root.files()}


@pytest.fixture
def copy(tiny_set: Path, tmp_path: Path) -> PreparedSet:
    """A set to cache in: 10 training samples in shards of 4, 4, 2 and 4 test samples."""
    return PreparedSet.open(shutil.copytree(tiny_set, tmp_path / "set"))


def test_copy_k_is_what_the_teacher_says_of_the_augmentation_of_epoch_k(copy):
    cache = build(copy)
    stored = cache.image_features(copy, "train", verify="all")
    assert (stored.shape, stored.dim, stored.draw) == ((COPIES, 16), 16, "copy")
    teacher, table = create_image_teacher("descriptor:16"), copy.read("train", [], views=True)
    ids, views = table["sample_id"].to_pylist(), table["views"].to_pylist()
    found = stored.read()
    assert found["sample_id"].to_pylist() == ids
    features = points_to_numpy(found["image_features"])
    assert features.dtype == np.float16
    for copy_number in range(COPIES):
        images = load_images(views, ids, epoch=copy_number, seed=5, transform=TRANSFORM)
        expected = teacher.encode(images).numpy()
        # Half precision keeps 11 bits; features have length 8.
        np.testing.assert_allclose(features[:, copy_number], expected, rtol=1e-3, atol=1e-4)


def test_the_shards_are_those_of_the_set(copy):
    cache = build(copy, splits=("train", "test"))
    for name, split in copy.splits.items():
        files = cache.image_features(copy, name, verify="all").files
        assert [path.name for path in files] == [path.name for path in split.views]
        assert [pq.read_metadata(path).num_rows for path in files] == split.shard_rows.tolist()


def test_the_bytes_do_not_depend_on_order_threads_or_interruptions(copy, tiny_set, tmp_path):
    whole = file_bytes(build(copy).path)
    other = PreparedSet.open(shutil.copytree(tiny_set, tmp_path / "other"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    folders = [str(Path(file).parent) for file in (__file__, data_samples.__file__)]
    command = [sys.executable, "-c", CHILD, str(other.path), *folders]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout.readline() == "in write\n"
        child.kill()
    assert len(list((tmp_path / "other").rglob(".tmp-*"))) == 1
    assert not list((tmp_path / "other" / "teachers").rglob("_manifest.json"))
    encoded: list[str] = []
    cache = build(other, encoded=encoded, threads=3)
    assert len(encoded) == 2  # of three shards
    assert file_bytes(cache.path) == whole
    files = [cache.path / file for file in whole if file.endswith(".parquet")]
    ids = [i for path in files for i in pq.read_table(path)["sample_id"]]
    assert len(ids) == len(set(ids)) == 10


def test_only_what_is_missing_is_encoded_again_and_a_further_split_joins(copy):
    cache = build(copy)
    before = file_bytes(cache.path)
    (cache.path / "train" / "part-00001-of-00003.parquet").unlink()
    encoded: list[str] = []
    build(copy, encoded=encoded)
    assert encoded == ["train/part-00001-of-00003.parquet"]
    assert file_bytes(cache.path) == before
    build(copy, encoded=encoded)
    assert len(encoded) == 1
    encoded.clear()
    cache = build(copy, splits=("test",), encoded=encoded)
    assert encoded == ["test/part-00000-of-00001.parquet"]
    assert set(cache.manifest["splits"]) == {"train", "test"}


def test_without_augmentation_every_view_is_encoded_once(copy):
    assert views_per_sample(copy.splits["train"]) == 2
    cache = build(copy, transform=CLEAN, copies=2)
    stored = cache.image_features(copy, "train", verify="all")
    assert stored.draw == "view"
    table = copy.read("train", [], views=True)
    features = points_to_numpy(stored.read()["image_features"])
    teacher = create_image_teacher("descriptor:16")
    for view in range(2):
        alone = [[row[view]] for row in table["views"].to_pylist()]
        ids = table["sample_id"].to_pylist()
        images = load_images(alone, ids, epoch=0, seed=0, transform=CLEAN)
        expected = teacher.encode(images).numpy()
        np.testing.assert_allclose(features[:, view], expected, rtol=1e-3, atol=1e-4)


def _replace_views(prepared: PreparedSet, sample: int, views: list[bytes]) -> None:
    path = prepared.splits["train"].views[1]
    table = pq.read_table(path)
    rows = table["views"].to_pylist()
    rows[sample] = views
    column = pa.array(rows, table.schema.field("views").type)
    table = table.set_column(1, table.schema.field("views"), column)
    write_table(prepared.path, path.below(prepared.path), table)


def test_a_damaged_view_is_named_and_leaves_no_finished_cache(copy):
    _replace_views(copy, 2, [b"no picture"] * 2)
    message = r"views/train/part-00001-of-00003.parquet: Sample 6: .*PNG"
    with pytest.raises(DataError, match=message):
        build(copy)
    assert not list(Path(copy.path).glob("teachers/*/_manifest.json"))


def test_clean_features_need_the_same_number_of_views(copy):
    table = copy.read("train", [], views=True)
    _replace_views(copy, 1, table["views"][0].as_py()[:1])
    with pytest.raises(DataError, match="Sample 5 has 1 views, others have 2; cache with"):
        build(copy, transform=CLEAN, copies=2)


def test_features_beyond_half_precision_are_refused(copy):
    class Loud(torch.nn.Module):
        dim = 4

        def encode(self, images):
            return torch.full((len(images), 4), 1e5)

    plan = make_cache_plan(copy, identity(copy), ["train"], TRANSFORM)
    with pytest.raises(DataError, match="Sample 0: its features are not finite or beyond"):
        plan.tasks[0].encode(Loud())


def test_what_differs_is_named(copy):
    cache, wanted = build(copy), identity(copy)
    assert difference(cache.identity, wanted) is None
    assert difference(cache.identity, {"preprocessing": {"augment": "reference"}}) is None
    other = {**wanted, "preprocessing": {"augment": "reference", "bgr": True}}
    message = "preprocessing.bgr is False there, True is asked for"
    assert difference(cache.identity, other) == message
    assert cache_key(other) != cache_key(wanted)
    fitting, reason = find_caches(copy, other)
    assert fitting == []
    assert reason == f"{cache.path.name}: {message}"
    assert [found.path for found in find_caches(copy, wanted)[0]] == [cache.path]


def test_pictures_belong_to_the_identity_and_points_do_not(copy, tmp_path):
    other = PreparedSet.open(_prepared_with(tmp_path / "other", num_points=32))
    assert views_identity(other) == views_identity(copy)
    other = PreparedSet.open(_prepared_with(tmp_path / "third", image_size=24))
    assert views_identity(other) != views_identity(copy)


def _prepared_with(root: Path, **changed: int) -> Path:
    prepare(SOURCE, root, type(OPTIONS)(**{**vars(OPTIONS), **changed}))
    return root


def test_a_cache_that_is_not_whole_is_refused(copy):
    cache = build(copy)
    with pytest.raises(ConfigError, match=r"holds features of train, not of 'test'; .*\[test\]"):
        cache.image_features(copy, "test", verify="all")
    file = cache.path / "train" / "part-00002-of-00003.parquet"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(bytes(content))
    damaged = r"part-00002-of-00003.parquet: is damaged or was changed"
    with pytest.raises(DataError, match=damaged):
        cache.image_features(copy, "train", verify="all")
    when_read = cache.image_features(copy, "train", verify="read")
    with pytest.raises(DataError, match=damaged):
        when_read.read()
    cache.image_features(copy, "train", verify="open")
    file.unlink()
    with pytest.raises(DataError, match=r"part-00002-of-00003.parquet: is missing"):
        cache.image_features(copy, "train", verify="open")


def test_an_unfinished_or_older_cache_is_refused_by_name_and_otherwise_passed_over(copy, caplog):
    cache = build(copy)
    manifest = cache.path / "_manifest.json"
    manifest.write_bytes(json.dumps({**json.loads(manifest.read_bytes()), "version": 0}).encode())
    with pytest.raises(DataError, match="is a teacher cache of version 0, this package reads"):
        TeacherCache.open(cache.path)
    assert find_caches(copy, identity(copy)) == ([], None)
    assert "version 0" in caplog.text
    manifest.unlink()
    with pytest.raises(DataError, match="is not a finished teacher cache"):
        TeacherCache.open(cache.path)


@pytest.mark.parametrize("use_prompts", [True, False])
def test_a_text_bank_is_read_back_exactly(tmp_path, use_prompts):
    texts = ["chair", "table lamp", "chair"]
    teacher = create_text_teacher("descriptor:16")
    bank = text_bank(teacher, texts, use_prompts=use_prompts)
    task = make_text_task(Place.of(tmp_path), teacher.identity, texts, use_prompts=use_prompts)
    root = Place(task.root)
    assert not task.is_finished(root.files())
    task.encode(teacher)
    assert task.is_finished(root.files())
    cache = TeacherCache.open(root)
    assert torch.equal(cache.text_bank(texts), bank)
    table = pq.read_table(root / "text_bank.parquet")
    assert table.column_names == ["text", "prompt", "feature"]
    last = "A 3D rendering image of a chair with black context." if use_prompts else "chair"
    assert table["prompt"][-1].as_py() == last
    with pytest.raises(DataError, match=r"text_bank.parquet: holds other texts than the set"):
        cache.text_bank(["chair", "lamp", "chair"])


def test_a_stream_reads_features_beside_the_rows_and_they_count_as_memory(copy):
    stored = build(copy).image_features(copy, "train", verify="all")
    split = copy.splits["train"]
    files = SplitFiles((split.geometry, stored.files))
    columns = ("sample_id", "image_features")
    expected = dict(zip(*(stored.read()[name].to_pylist() for name in columns), strict=True))
    reads = [files.of(Read(n, range(split.shard_rows[n]))) for n in reversed(range(len(files)))]
    found = pa.concat_tables(ShardReader(["sample_id", "label"], [stored.column])(reads))
    assert found.column_names == ["sample_id", "label", "image_features"]
    values = zip(*(found[name].to_pylist() for name in columns), strict=True)
    assert dict(values) == expected
    alone = decoded_bytes(copy, split, views=False)
    both = decoded_bytes(copy, split, views=False, features=[stored])
    assert both - alone == 10 * COPIES * 16 * 2
    assert alone >= 10 * copy.num_points * 3 * 4
