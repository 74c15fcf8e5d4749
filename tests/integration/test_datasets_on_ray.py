"""Ray Data over prepared sets: as plain Ray reads them, and as the workers of a training do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import ray

from recon_ray.cluster.datasets import PreparedShards, RayStream, configure, put_stream
from recon_ray.cluster.session import ray_session
from recon_ray.config.sections.common import ClusterSection
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.loading.shard_reader import ShardReader, SplitFiles
from recon_ray.data.loading.stream_order import Read, StreamLayout, StreamOrder, StreamShare
from recon_ray.errors import DataError

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROW_BYTES = 96 * 3 * 4


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with ray_session(ClusterSection(workers=1)):
        configure()
        yield


def parts(prepared: PreparedSet) -> tuple[SplitFiles, ShardReader, np.ndarray]:
    split = prepared.splits["train"]
    reader = ShardReader(("sample_id", "points"), ("views",))
    return SplitFiles((split.geometry, split.views)), reader, np.asarray(split.shard_rows)


def test_plain_ray_reads_the_files_of_a_set(tiny_prepared):
    """As the page on data sets says."""
    dataset = ray.data.read_parquet(
        str(tiny_prepared.path / "geometry" / "train"),
        tensor_column_schema={"points": (np.float32, (96, 3))},
    )
    rows = {row["sample_id"]: row["points"] for row in dataset.take_all()}
    table = tiny_prepared.read("train", ["points"])
    assert len(rows) == len(table) == 24
    for sample, points in zip(table["sample_id"].to_pylist(), table["points"], strict=True):
        assert rows[sample].shape == (96, 3)
        assert rows[sample].flatten().tolist() == points.as_py()


def test_ray_knows_rows_sizes_and_files_before_anything_is_read(tiny_prepared):
    files, reader, shard_rows = parts(tiny_prepared)
    reads = [files.of(Read(n, range(int(rows)))) for n, rows in enumerate(shard_rows)]
    source = PreparedShards(reader, reads, row_bytes=ROW_BYTES, name="tiny/train")
    tasks = source.get_read_tasks(2)
    assert [task.metadata.num_rows for task in tasks] == [14, 10]
    assert list(tasks[0].metadata.input_files) == [
        str(kind[shard]) for shard in (0, 1) for kind in files.kinds
    ]
    broken = ShardReader(("no such column",))
    dataset = ray.data.read_datasource(PreparedShards(broken, reads, row_bytes=1, name="x"))
    assert dataset.count() == 24
    assert len(ray.cloudpickle.dumps(tasks[0].read_fn)) < 10_000


def test_a_stream_and_blocks_give_the_rows_in_the_same_order_and_name_what_is_damaged(
    tiny_prepared, tmp_path
):
    shutil.copytree(tiny_prepared.path, tmp_path / "set")
    files, reader, shard_rows = parts(PreparedSet.open(tmp_path / "set"))
    order = StreamOrder(shard_rows, 4, StreamLayout(2, 6))
    share = StreamShare(order, 1, 4, 4, 5, slice(1, 4))
    expected = pa.concat_tables(reader(map(files.of, share.reads())))
    blocks = put_stream(files, shard_rows, reader, row_bytes=ROW_BYTES, seed=4)
    first = tuple(kind[0] for kind in files.kinds)
    stream = RayStream(
        files, reader.reporting(first), ROW_BYTES, name="tiny/train", workers=2, cpus=1
    )
    for source in (stream, blocks):
        found = pa.concat_tables(source(share.reads(), is_first=True))
        assert found.to_pylist() == expected.to_pylist(), source
    files.kinds[1][1].write_bytes(b"PAR1" + bytes(64))
    with pytest.raises(DataError, match="cannot be read as Parquet; delete it") as error:
        list(stream(share.reads(), is_first=True))
    assert "\n" not in str(error.value)
