import numpy as np
import pytest

from recon_ray.errors import ConfigError
from recon_ray.train.feed.batching import BatchPlan, epoch_order, steps_per_epoch


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_the_workers_shares_make_up_the_global_batch(world_size):
    plan = BatchPlan(12, world_size)
    rows = np.arange(100, 112)
    shares = [plan.rank_rows(rows, rank) for rank in range(world_size)]
    assert np.concatenate(shares).tolist() == rows.tolist()
    assert {len(share) for share in shares} == {12 // world_size}


@pytest.mark.parametrize(("share", "limit", "sizes"), [
    (8, None, [8]), (8, 8, [8]), (8, 3, [2, 3, 3]), (8, 4, [4, 4]), (7, 2, [1, 2, 2, 2]),
])  # fmt: skip
def test_micro_batches_cover_the_share_and_stay_within_the_limit(share, limit, sizes):
    slices = BatchPlan(share, 1, limit).micro_slices()
    assert sorted(part.stop - part.start for part in slices) == sizes
    assert [row for part in slices for row in range(share)[part]] == list(range(share))


def test_an_indivisible_global_batch_is_refused():
    with pytest.raises(ConfigError, match="global_batch_size=10 is not divisible by 3 workers"):
        BatchPlan(10, 3)


def test_epochs_are_different_permutations_and_repeatable():
    first, second = epoch_order(50, seed=1, epoch=0), epoch_order(50, seed=1, epoch=1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.tolist() != second.tolist()
    assert first.tolist() == epoch_order(50, seed=1, epoch=0).tolist()
    assert first.tolist() != epoch_order(50, seed=2, epoch=0).tolist()


def test_fewer_samples_than_one_global_batch_are_refused():
    assert steps_per_epoch(17, 8) == 2
    with pytest.raises(ConfigError, match="'train' has only 7 samples, fewer than one global"):
        steps_per_epoch(7, 8)
