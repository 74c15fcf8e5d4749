"""A prepared set for readers that want numbers, not the bytes of tensors."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recon_ray.data.format import export
from recon_ray.data.format.export import export_plain
from recon_ray.data.format.files import read_table
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.schema import points_to_numpy
from recon_ray.errors import DataError
from recon_ray.storage import Place


@pytest.fixture
def opened(tiny_set):
    return PreparedSet.open(tiny_set)


@pytest.fixture
def out(tmp_path):
    return Place.of(tmp_path / "out")


def test_the_numbers_are_the_same_and_the_types_plain(opened, out, tmp_path):
    record = export_plain(opened, out)
    assert record["rows"] == {"train": 10, "test": 4}
    assert json.loads((out / "_export.json").read_bytes()) == record
    for split in opened.splits.values():
        for path in split.geometry:
            before = read_table(path, None)
            after = pq.read_table(tmp_path / "out" / path.below(opened.path))
            field = after.schema.field("points")
            assert field.type == pa.list_(pa.float32(), 64 * 3)
            assert json.loads(field.metadata[b"shape"]) == [64, 3]
            points = np.stack(after["points"].to_pylist()).astype(np.float32).reshape(-1, 64, 3)
            np.testing.assert_array_equal(points, points_to_numpy(before["points"]))
            rest = [name for name in before.column_names if name != "points"]
            assert after.select(rest).equals(before.select(rest))
    for path in (tmp_path / "out").rglob("*.parquet"):
        assert b"fixed_shape_tensor" not in path.read_bytes()


def test_an_export_is_repeated_and_another_folder_left_alone(opened, out, tmp_path):
    first = export_plain(opened, out)
    assert export_plain(opened, out) == first
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").touch()
    with pytest.raises(DataError, match="own: holds something else than an export"):
        export_plain(opened, Place.of(tmp_path / "own"))
    with pytest.raises(DataError, match="holds something else than an export"):
        export_plain(opened, opened.path)
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["thesis.txt"]


def test_what_is_read_back_is_compared(opened, out, monkeypatch):
    real = export.read_table

    def damaged(path: Place, columns: list[str] | None, **options: str) -> pa.Table:
        table = real(path, columns, **options)
        return table.slice(1) if str(path).startswith(str(out)) else table

    monkeypatch.setattr(export, "read_table", damaged)
    with pytest.raises(DataError, match="what was read back is not what was written"):
        export_plain(opened, out)
    assert not json.loads((out / "_export.json").read_bytes())["complete"]
