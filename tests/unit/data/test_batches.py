import threading

import numpy as np
import pyarrow as pa
import pytest

from recon_ray.data.batches import BatchOptions, IndexedTable, ShuffleBuffer, make_batch, prefetch
from recon_ray.data.images import ImageTransform
from recon_ray.data.schema import tensor_column


def _table(ids: list[int]) -> pa.Table:
    points = np.stack([np.full((4, 3), i, np.float32) for i in ids])
    columns = {
        "sample_id": pa.array(ids, pa.int64()),
        "points": tensor_column(points),
        "label": pa.array([i % 3 for i in ids], pa.int32()),
        "caption": [f"shape {i}" for i in ids],
    }
    return pa.table(columns)


def test_rows_are_gathered_over_blocks_in_the_order_asked_for():
    table = IndexedTable([_table([0, 1, 2]), _table([3]), _table([4, 5])])
    taken = table.take(np.array([5, 0, 3, 3, 1]))
    assert taken["sample_id"].tolist() == [5, 0, 3, 3, 1]
    assert taken["points"][:, 0, 0].tolist() == [5, 0, 3, 3, 1]
    assert taken["caption"] == ["shape 5", "shape 0", "shape 3", "shape 3", "shape 1"]


def test_blocks_are_not_copied():
    block = _table([0, 1, 2])
    table = IndexedTable([block])
    assert not table._points[0].flags.owndata


def test_a_batch_is_writable_and_float32_whatever_is_stored(tiny_prepared):
    rows = tiny_prepared.read("train", columns=["points", "label"])
    batch = make_batch(IndexedTable([rows]).take(np.arange(4)), BatchOptions(), epoch=0)
    batch["points"].add_(1)
    assert batch["points"].shape == (4, 96, 3)
    assert batch["text_index"].tolist() == batch["label"].tolist()


def test_captions_are_numbered_in_the_order_of_the_text_bank():
    rows = IndexedTable([_table([0, 1, 2])]).take(np.array([2, 0]))
    options = BatchOptions(text="caption", captions=["shape 0", "shape 1", "shape 2"])
    assert make_batch(rows, options, epoch=0)["text_index"].tolist() == [2, 0]


def test_images_of_a_sample_do_not_depend_on_its_batch(tiny_prepared):
    columns = ["sample_id", "points", "label"]
    table = tiny_prepared.read("train", columns=columns, views=True)
    indexed = IndexedTable([table.select(columns)], [table.select(["sample_id", "views"])])
    options = BatchOptions(seed=1, images=ImageTransform(kind="reference", image_size=32))
    whole = make_batch(indexed.take(np.arange(6)), options, epoch=2)
    alone = make_batch(indexed.take(np.array([4])), options, epoch=2)
    other = make_batch(indexed.take(np.array([4])), options, epoch=3)
    assert whole["images"].shape == (6, 3, 32, 32)
    assert np.array_equal(whole["images"][4], alone["images"][0])
    assert not np.array_equal(alone["images"][0], other["images"][0])


@pytest.mark.parametrize("capacity", [1, 10, 24, 1000])
@pytest.mark.parametrize("blocks", [[40], [30, 10], [1] * 40, [7, 3, 20, 10]])
def test_a_stream_gives_batches_of_one_size_and_every_row_once(capacity, blocks):
    start, tables = 0, []
    for size in blocks:
        tables.append(_table(list(range(start, start + size))))
        start += size
    batches = list(ShuffleBuffer(8, capacity=capacity, seed=(1, 2)).mix(tables))
    assert [len(batch["sample_id"]) for batch in batches] == [8] * 5
    ids = np.concatenate([batch["sample_id"] for batch in batches])
    assert sorted(ids) == list(range(40))
    for batch in batches:
        assert batch["points"][:, 0, 0].tolist() == batch["sample_id"].tolist()
        assert batch["caption"] == [f"shape {i}" for i in batch["sample_id"]]


def test_a_stream_is_mixed_and_its_incomplete_end_is_dropped():
    tables = [_table(list(range(start, start + 10))) for start in range(0, 30, 10)]
    first = list(ShuffleBuffer(8, capacity=20, seed=(1,)).mix(tables))
    again = list(ShuffleBuffer(8, capacity=20, seed=(1,)).mix(tables))
    assert len(first) == 3
    ids = np.concatenate([batch["sample_id"] for batch in first])
    assert ids.tolist() == np.concatenate([b["sample_id"] for b in again]).tolist()
    assert (np.diff(ids) != 1).mean() > 0.5


def test_an_error_of_the_producer_reaches_the_consumer():
    def broken():
        yield 1
        raise OSError("gone")

    items = prefetch(broken)
    assert next(items) == 1
    with pytest.raises(OSError, match="gone"):
        next(items)


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    items = prefetch(lambda: iter(range(1000)), depth=1)
    assert next(items) == 0
    items.close()
    assert threading.active_count() == before
