from __future__ import annotations

import pytest
import torch

from recon_ray.points import random
from recon_ray.points.random import SampleGenerator

IDS = torch.tensor([5, 0, 123456789012, 7])


def draws(generator: SampleGenerator) -> list[torch.Tensor]:
    return [generator.uniform(3, 2), generator.randint(10, 4), generator.permutation(6)]


def test_numbers_do_not_depend_on_batch_split_or_order() -> None:
    whole = draws(SampleGenerator(3, IDS, epoch=2, stream=1))
    order = torch.tensor([2, 0, 3, 1])
    shuffled = draws(SampleGenerator(3, IDS[order], epoch=2, stream=1))
    parts = [draws(SampleGenerator(3, IDS[i : i + 1], epoch=2, stream=1)) for i in range(4)]
    for call, numbers in enumerate(whole):
        assert torch.equal(numbers[order], shuffled[call])
        assert torch.equal(numbers, torch.cat([part[call] for part in parts]))


@pytest.mark.parametrize(
    "other",
    [
        SampleGenerator(4, IDS, 2),
        SampleGenerator(3, IDS, 3),
        SampleGenerator(3, IDS, 2, stream=1),
        SampleGenerator(3, IDS + 1, 2),
    ],
    ids=["seed", "epoch", "stream", "sample"],
)
def test_every_key_changes_all_numbers(other: SampleGenerator) -> None:
    base = SampleGenerator(3, IDS, 2).uniform(64)
    assert not torch.isin(other.uniform(64), base).any()


def test_known_numbers_never_change_and_calls_advance_the_counter() -> None:
    # A change of the generator would silently change every run that is continued.
    numbers = SampleGenerator(0, torch.tensor([0, 1])).randint(1000, 3)
    assert numbers.tolist() == [[987, 539, 879], [836, 674, 465]]
    generator = SampleGenerator(0, IDS)
    assert not torch.equal(generator.uniform(8), generator.uniform(8))


def test_uniform_numbers_are_uniform_and_uncorrelated() -> None:
    u = SampleGenerator(1, torch.arange(2000), 5).uniform(64).double()
    # Standard errors: mean 0.0008, correlations 0.022 over 2000 samples; five of them are allowed.
    assert abs(float(u.mean()) - 0.5) < 0.004
    assert abs(float(u.var()) - 1 / 12) < 0.002
    across_positions = torch.corrcoef(u.T) - torch.eye(64)
    across_samples = torch.corrcoef(u[:200]) - torch.eye(200)
    assert float(across_positions.abs().max()) < 5 * 2000**-0.5
    assert float(across_samples.abs().max()) < 5.5 * 64**-0.5
    counts = torch.histc(u.float(), 100, 0, 1)
    chi_square = float(((counts - 1280) ** 2 / 1280).sum())
    assert 50 < chi_square < 160  # 99 degrees of freedom
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    generator = SampleGenerator(1, torch.arange(5000))
    first, second = generator.uniform().double(), generator.uniform().double()
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 5 * 5000**-0.5


def test_integers_cover_their_range_evenly() -> None:
    n = SampleGenerator(2, torch.arange(1000)).randint(7, 70)
    counts = torch.bincount(n.flatten(), minlength=7)
    assert n.min() == 0
    assert n.max() == 6
    assert float(((counts - 10000) ** 2 / 10000).sum()) < 30  # chi-square, 6 degrees of freedom


def test_permutations_are_permutations_and_even() -> None:
    p = SampleGenerator(2, torch.arange(6000)).permutation(3)
    assert torch.equal(p.sort(dim=1).values, torch.arange(3).expand(6000, 3))
    counts = torch.bincount(p[:, 0] * 9 + p[:, 1] * 3 + p[:, 2])
    counts = counts[counts > 0]
    assert len(counts) == 6
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 30


def test_module_functions_take_every_kind_of_source_and_repeat_with_its_seed() -> None:
    for source in (SampleGenerator(0, IDS), torch.Generator().manual_seed(0), None):
        assert random.uniform(source, 4, 2).shape == (4, 2)
        assert random.randint(source, 9, 4, 3).max() < 9
        assert random.permutation(source, 5, 4).sort().values.tolist() == [[0, 1, 2, 3, 4]] * 4
    first = random.uniform(torch.Generator().manual_seed(3), 4, 2)
    assert torch.equal(first, random.uniform(torch.Generator().manual_seed(3), 4, 2))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="one-dimensional integer"):
        SampleGenerator(0, torch.rand(3))
    with pytest.raises(ValueError, match="high must be"):
        SampleGenerator(0, IDS).randint(0, 2)
    with pytest.raises(ValueError, match="made for 4 samples, the batch has 5"):
        random.uniform(SampleGenerator(0, IDS), 5)
