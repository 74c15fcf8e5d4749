"""Plans of shards: made when they are asked for, and what a list of all of them would hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from data_samples import OPTIONS, SOURCE

from recon_ray.data.prepare.shard_plan import ChosenTasks, Plan, make_plan
from recon_ray.data.readers.meshes import sample_generator


def listed(plan: Plan) -> list[tuple[str, str, int, list[str]]]:
    """Split, name, first id and samples of all shards, of the listing itself."""
    shards, first, size = [], 0, plan.options.samples_per_shard
    for split in ("train", "test"):
        ids = sorted(item.object_id for item in SOURCE.scan().items if item.split == split)
        order = sample_generator(plan.options.seed, f"order of {split}").permutation(len(ids))
        rows = [ids[row] for row in order]
        total = -(-len(rows) // size)
        for index in range(total):
            chosen = rows[index * size : (index + 1) * size]
            shards.append((split, f"part-{index:05d}-of-{total:05d}.parquet", first, chosen))
            first += len(chosen)
    return shards


@pytest.fixture(params=[1, 3, 4, 5, 64])
def plan(request) -> Plan:
    return make_plan(SOURCE, "/out", replace(OPTIONS, views=0, samples_per_shard=request.param))


def test_a_plan_is_that_of_earlier_releases():
    """Their unfinished sets are continued by it: a digit more would begin them anew."""
    plan = make_plan(SOURCE, "/out", replace(OPTIONS, views=0))
    assert plan.hash == "056efe5371720deddf219942525e924d11cd1bd051b5dadd62818cdf9700c37d"
    assert plan.tasks[1].key == "77b336aff4e2736d255435c7447f193b08d85a9aaa520992519f067041228ed1"


def test_tasks_are_those_of_a_list(plan):
    expected, tasks = listed(plan), plan.tasks
    found = [
        (task.split, task.name, task.first_sample_id, [item.object_id for item in task.items])
        for task in tasks
    ]
    assert found == expected
    assert len(tasks) == len(expected)
    assert plan.num_samples == sum(len(ids) for *_, ids in expected)
    assert [task.number for task in tasks] == list(range(len(tasks)))
    assert len({task.key for task in tasks}) == len(tasks)
    assert tasks[-1] == list(tasks)[-1]
    assert tasks[::-2] == list(tasks)[::-2]
    for index in (len(tasks), -len(tasks) - 1):
        with pytest.raises(IndexError):
            tasks[index]


def test_a_shard_is_found_by_its_name(plan):
    expected = listed(plan)
    for number, (split, name, *_) in enumerate(expected):
        assert plan.tasks.number_of(split, name) == number
    split, name, *_ = expected[-1]
    counts = plan.tasks.counts
    others = [
        ("val", name), (split, name.replace("part-", "part-0")), (split, f"{name}.tmp"),
        (split, f".tmp-1-{name}"), (split, name.replace(".parquet", "xparquet")), (split, ""),
        (split, f"part-{counts[split]:05d}-of-{counts[split]:05d}.parquet"),
        (split, f"part-00000-of-{counts[split] + 1:05d}.parquet"),
    ]  # fmt: skip
    assert {pair: plan.tasks.number_of(*pair) for pair in others} == dict.fromkeys(others)


def test_chosen_tasks_are_the_ones_of_their_numbers(plan):
    every, numbers = list(plan.tasks), np.arange(len(plan.tasks))[::-2]
    chosen = ChosenTasks(plan.tasks, numbers)
    assert list(chosen) == [every[number] for number in numbers]
    assert list(chosen[1:]) == list(chosen)[1:]
    assert list(chosen[::-1]) == list(chosen)[::-1]
    assert chosen[-1] == every[numbers[-1]]
