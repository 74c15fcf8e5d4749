import threading
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch

from recon_ray.data.format.schema import tensor_column
from recon_ray.data.loading.batches import (
    BatchOptions,
    IndexedTable,
    RowWindow,
    choose_features,
    filled,
    make_batch,
)
from recon_ray.data.loading.images import ImageTransform, load_images, sample_rng
from recon_ray.data.loading.prefetch import prefetch
from recon_ray.errors import DataError
from recon_ray.train.feed.indexed import evaluation_batches


def _table(ids: list[int]) -> pa.Table:
    points = np.stack([np.full((4, 3), i, np.float32) for i in ids])
    columns = {
        "sample_id": pa.array(ids, pa.int64()),
        "points": tensor_column(points),
        "label": pa.array([i % 3 for i in ids], pa.int32()),
        "caption": [f"shape {i}" for i in ids],
    }
    return pa.table(columns)


def test_rows_are_gathered_in_the_order_asked_for_without_a_copy():
    table = IndexedTable([_table([0, 1, 2]), _table([3]), _table([4, 5])])
    taken = table.take(np.array([5, 0, 3, 3, 1]))
    assert taken["sample_id"].tolist() == [5, 0, 3, 3, 1]
    assert taken["points"][:, 0, 0].tolist() == [5, 0, 3, 3, 1]
    assert taken["caption"] == ["shape 5", "shape 0", "shape 3", "shape 3", "shape 1"]
    block = _table([0, 1, 2])
    table = IndexedTable([block])
    held = table._groups[0]._tensors["points"][0]
    assert held.data_ptr() == block["points"].chunk(0).to_numpy_ndarray().ctypes.data


def test_a_batch_is_writable_and_captions_are_numbered_as_in_the_text_bank(tiny_prepared):
    rows = tiny_prepared.read("train", columns=["points", "label"])
    batch = make_batch(IndexedTable([rows]).take(np.arange(4)), BatchOptions(), epoch=0)
    batch["points"].add_(1)
    assert batch["points"].shape == (4, 96, 3)
    assert batch["text_index"].tolist() == batch["label"].tolist()
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


@pytest.mark.parametrize("blocks", [[40], [30, 10], [1] * 40, [7, 3, 20, 10]])
def test_a_window_gives_every_row_by_its_number_and_holds_no_piece_that_is_used_up(blocks):
    start, window = 0, RowWindow()
    for size in blocks:
        window.add(_table(list(range(start, start + size))))
        start += size
    assert window.arrived == 40
    for numbers in np.random.default_rng(0).permutation(40).reshape(5, 8):
        rows = window.take(numbers)
        assert rows["sample_id"].tolist() == numbers.tolist()
        assert rows["points"][:, 0, 0].tolist() == numbers.tolist()
        assert rows["caption"] == [f"shape {i}" for i in numbers]
    assert not window._pieces
    window.add(_table([40, 41]))
    assert window.take(np.array([41, 40]))["sample_id"].tolist() == [41, 40]


def test_an_error_of_the_producer_reaches_the_consumer_and_leaving_ends_the_thread():
    def broken():
        yield 1
        raise OSError("gone")

    items = prefetch(broken)
    assert next(items) == 1
    with pytest.raises(OSError, match="gone"):
        next(items)
    before = threading.active_count()
    items = prefetch(lambda: iter(range(1000)), depth=1)
    assert next(items) == 0
    items.close()
    assert threading.active_count() == before


def _feature_table(ids: list[int], name: str = "image_features") -> pa.Table:
    values = np.stack([np.full((2, 3), i, np.float16) for i in ids])
    return pa.table({"sample_id": pa.array(ids, pa.int64()), name: tensor_column(values)})


def test_every_column_that_was_given_is_taken_and_others_on_request_only():
    part = tensor_column(np.arange(12, dtype=np.uint8).reshape(3, 4))
    table = _table([0, 1, 2]).append_column("part_labels", part)
    table = table.append_column("valid_points", pa.array([4, 3, 2], pa.int32()))
    features = [_feature_table([0]), _feature_table([1, 2])]  # blocks of their own
    texts = [_feature_table([0, 1, 2], "text_features")]
    indexed = IndexedTable([table], None, [features, texts])
    taken = indexed.take(np.array([2, 0]))
    assert set(taken) == {*table.column_names, "image_features", "text_features"}
    assert taken["part_labels"].tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert taken["valid_points"].tolist() == [2, 4]
    assert taken["image_features"].dtype == np.float16
    assert taken["image_features"][:, 0, 0].tolist() == [2, 0]
    assert set(indexed.take(np.array([1]), {"label", "text_features"})) == {
        "label",
        "text_features",
    }


def test_features_of_other_samples_are_refused():
    with pytest.raises(DataError, match="do not hold the same samples"):
        IndexedTable([_table([0, 1, 2])], None, [[_feature_table([0, 2, 1])]])
    with pytest.raises(DataError, match="do not hold the same samples"):
        IndexedTable([_table([0, 1, 2])], None, [[_feature_table([0, 1])]])


def test_the_drawn_view_is_the_one_that_would_be_loaded(tiny_prepared):
    table = tiny_prepared.read("train", columns=[], views=True)
    ids, views = table["sample_id"].to_pylist(), table["views"].to_pylist()
    transform = ImageTransform(kind="none", image_size=16)
    every = [
        load_images([[row[v]] for row in views], ids, epoch=0, seed=0, transform=transform)
        for v in range(2)
    ]
    stored = torch.stack([images.flatten(1) for images in every], dim=1).numpy()
    for epoch in range(3):
        loaded = load_images(views, ids, epoch=epoch, seed=9, transform=transform)
        random = partial(sample_rng, 9, epoch)
        chosen = choose_features(filled(stored), ids, "view", epoch=epoch, random=random)
        assert np.array_equal(stored[np.arange(len(ids)), chosen], loaded.flatten(1).numpy())


def test_filled_up_rows_are_never_drawn_and_epochs_take_the_copies_in_turn():
    features = np.zeros((2, 4, 3), np.float16)
    features[0, 1], features[0, 3] = 1, 3
    seen = {
        int(choose_features(filled(features), [0, 1], "row", epoch=e, random=random)[0])
        for e, random in ((e, partial(sample_rng, 0, e)) for e in range(40))
    }
    assert seen == {1, 3}
    draw = partial(choose_features, np.ones((2, 3), bool), [7, 8], "copy", random=None)
    assert draw(epoch=1).tolist() == [1, 1]
    assert draw(epoch=5).tolist() == [2, 2]


def test_a_batch_holds_one_stored_feature_a_sample():
    rows = IndexedTable([_table([0, 1, 2])], None, [[_feature_table([0, 1, 2])]])
    options = BatchOptions(features={"image_features": "copy"})
    assert options.needs == {"sample_id", "points", "label", "image_features"}
    batch = make_batch(rows.take(np.array([2, 1]), options.needs), options, epoch=3)
    assert batch["image_features"].dtype == torch.float32
    assert batch["image_features"].tolist() == [[2.0] * 3, [1.0] * 3]


def test_features_pass_a_window_with_their_rows():
    window = RowWindow()
    for ids in ([0, 1, 2], [3, 4, 5, 6, 7]):
        features = _feature_table(ids)["image_features"]
        window.add(_table(ids).append_column("image_features", features))
    for numbers in ([6, 0, 7, 1], [2, 3, 4, 5]):
        assert window.take(np.array(numbers))["image_features"][:, 1, 2].tolist() == numbers


@pytest.mark.cuda
def test_a_gpu_copies_from_the_memory_that_a_stream_is_gathered_into():
    window = RowWindow(pinned=True)
    window.add(_table([*range(12)]))
    batch = make_batch(window.take(np.array([7, 3])), BatchOptions(), epoch=0)
    assert batch["points"].is_pinned()
    assert batch["points"][:, 0, 0].tolist() == batch["sample_id"].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("limit", [None, 5])
def test_evaluation_takes_every_row_once_on_any_number_of_workers(world_size, limit):
    table = IndexedTable([_table(list(range(7))), _table(list(range(7, 13)))])
    seen: list[int] = []
    for rank in range(world_size):
        for batch in evaluation_batches(
            table, BatchOptions(), batch_size=2, rank=rank, world_size=world_size, limit=limit
        ):
            seen += batch["sample_id"].tolist()
    assert sorted(seen) == list(range(limit or 13))
