"""The search for the largest batch: what it tries, and where it ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from recon_ray.benchmarks.step import TRIES, largest_size

GIB = float(1 << 30)


def search(
    memory: Callable[[int], float], *, limit: float, most: int = 8192
) -> tuple[tuple[int, float] | None, list[int]]:
    tried: list[int] = []

    def counted(size: int) -> float:
        tried.append(size)
        return memory(size)

    return largest_size(counted, limit=limit, first=128, most=most), tried


@pytest.mark.parametrize("limit", [3.5, 7.9, 78.0])
def test_linear_memory_is_extrapolated_in_a_few_tries(limit):
    def memory(size: int) -> float:
        return (0.5 + 0.02 * size) * GIB

    (size, taken), tried = search(memory, limit=limit * GIB)
    assert taken == memory(size) <= limit * GIB < memory(size + 16)
    assert len(tried) <= 4


def test_a_batch_that_runs_out_of_memory_is_approached_from_below():
    (size, taken), tried = search(
        lambda size: math.inf if size > 1000 else size * 0.01 * GIB, limit=78 * GIB
    )
    assert 900 <= size <= 1000
    assert taken == size * 0.01 * GIB
    assert len(tried) <= TRIES + 1


def test_memory_that_grows_faster_with_the_batch_never_gives_one_beyond_the_limit():
    (size, taken), _ = search(lambda size: 1e-6 * size**2 * GIB, limit=GIB)
    assert 850 <= size <= 1000
    assert taken <= GIB


def test_there_are_no_more_samples_than_there_are():
    assert search(lambda size: size, limit=GIB, most=300)[0] == (300, 300)
    assert search(lambda size: size, limit=GIB, most=100)[0] == (100, 100)


def test_nothing_is_found_where_not_even_the_first_batch_fits():
    assert search(lambda size: 2 * GIB, limit=GIB) == (None, [128])
