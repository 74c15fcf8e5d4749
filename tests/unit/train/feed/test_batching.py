import itertools

import pytest

from recon_ray.errors import ConfigError
from recon_ray.train.feed.batching import BatchPlan, epoch_order, steps_per_epoch


@pytest.mark.parametrize("size", [512, 1000, 1024, 131_072])
def test_the_shares_of_any_number_of_workers_make_up_the_global_batch(size):
    for world_size in range(1, 513):
        plan = BatchPlan(size, world_size)
        bounds = [plan.share(rank) for rank in range(world_size)]
        assert bounds[0].start == 0
        assert bounds[-1].stop == size
        assert all(one.stop == after.start for one, after in itertools.pairwise(bounds))
        counts = [one.stop - one.start for one in bounds]
        assert max(counts) - min(counts) <= 1
        weights = [plan.weight(count) for count in counts]
        assert sum(weights) / world_size == pytest.approx(1)


@pytest.mark.parametrize(("share", "limit", "sizes"), [
    (8, None, [8]), (8, 8, [8]), (8, 3, [2, 3, 3]), (8, 4, [4, 4]), (7, 2, [1, 2, 2, 2]),
])  # fmt: skip
def test_micro_batches_cover_the_share_and_stay_within_the_limit(share, limit, sizes):
    plan = BatchPlan(share, 1, limit)
    slices = plan.micro_slices(0)
    assert plan.smallest_part == min(sizes)
    assert sorted(part.stop - part.start for part in slices) == sizes
    assert [row for part in slices for row in range(share)[part]] == list(range(share))


@pytest.mark.parametrize(("size", "world_size", "limit"), [(10, 3, 2), (11, 3, 2), (10, 3, 1)])
def test_all_workers_have_equally_many_micro_batches(size, world_size, limit):
    plan = BatchPlan(size, world_size, limit)
    cuts = [plan.micro_slices(rank) for rank in range(world_size)]
    sizes = [part.stop - part.start for slices in cuts for part in slices]
    assert {len(slices) for slices in cuts} == {plan.micro_batches}
    assert (sum(sizes), min(sizes)) == (size, plan.smallest_part)
    assert max(sizes) <= limit


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
