"""The parts of the ingest benchmark that need no Ray."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from recon_ray.benchmarks.config import BenchmarkConfig, IngestBenchmarkSection
from recon_ray.benchmarks.feed_loop import EpochTime, time_epoch
from recon_ray.benchmarks.ingest import (
    decoding_rates,
    describe,
    figures_of,
    loader_batches,
    random_cloud,
    random_set,
    training_options,
)
from recon_ray.benchmarks.memory import tree_bytes, watch_memory
from recon_ray.errors import DataError


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return IngestBenchmarkSection(
        folder=tmp_path_factory.mktemp("ingest"), samples=50, num_points=16, samples_per_shard=12,
        batch_size=8,
    )  # fmt: skip


@pytest.fixture(scope="module")
def prepared(options):
    return random_set(options.folder, options.samples, options)


@pytest.fixture(scope="module")
def passes(options, prepared):
    """The batches of two epochs."""
    return [list(loader_batches(prepared, options, epoch)) for epoch in (0, 1)]


@pytest.mark.parametrize("mode", IngestBenchmarkSection().modes)
def test_every_mode_is_a_configuration_of_a_training(mode):
    data = training_options(BenchmarkConfig(what="ingest"), mode).data
    assert (data.mode, data.residency == "object_store") == (mode, mode == "shared")


def ids(batches):
    return np.concatenate([batch["sample_id"].numpy() for batch in batches]).tolist()


def test_the_loader_reads_every_cloud_once_in_another_order_each_epoch(prepared, passes):
    assert sorted(ids(passes[0])) == list(range(50))
    assert time_epoch(iter(passes[0])).distinct == 50
    stored = prepared.read("train")
    names = dict(zip(stored["sample_id"].to_pylist(), stored["object_id"].to_pylist(), strict=True))
    first = passes[0][0]
    number = int(names[int(first["sample_id"][0])].removeprefix("cloud"))
    expected = random_cloud(number, 16).astype(np.float32)
    np.testing.assert_array_equal(first["points"][0].numpy(), expected)
    one, two = map(ids, passes)
    assert one != two
    assert sorted(one) == sorted(two)


def test_the_fastest_pass_counts_and_its_fixed_cost_is_told_apart(options):
    slow, fast = EpochTime(48, 48, 4.0, 1.0), EpochTime(48, 48, 2.0, 0.4)
    figures = figures_of("shared", [slow, fast], options)
    assert figures["shared_per_second"] == pytest.approx(24)
    assert figures["shared_first_pass_per_second"] == pytest.approx(12)
    assert figures["shared_fixed_seconds"] == pytest.approx(0.4)
    assert figures["shared_per_second_after_first_batch"] == pytest.approx((48 - 8) / 1.6)


@pytest.mark.parametrize("epoch", [EpochTime(48, 47, 1.0, 0.1), EpochTime(40, 40, 1.0, 0.1)])
def test_a_pass_that_doubles_or_loses_samples_is_no_figure(options, epoch):
    with pytest.raises(DataError, match="stream: a pass gave"):
        figures_of("stream", [epoch], options)


def test_the_table_has_a_row_a_mode_and_says_what_decoding_takes(options, prepared):
    metrics = {"clouds_prepared_per_second": 1.0, "views_rendered_per_second_per_core": 2.0}
    metrics |= decoding_rates(prepared.splits["train"].geometry[0])
    epoch = EpochTime(48, 48, 2.0, 0.4)
    for name in ("dataloader", *options.modes):
        metrics |= figures_of(name, [epoch], options)
    lines = describe(metrics, options).splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["dataloader", "shared", "cached", "stream"]
    assert re.search(r"by one thread: [1-9]\d* clouds/s; lists of numbers, zstd: [1-9]", lines[-1])


def test_memory_counts_what_a_started_process_holds():
    size = 64 << 20
    held = f"held = bytearray(b'1') * {size}; print('ready', flush=True); input()"
    with (
        watch_memory() as peak,
        subprocess.Popen(
            [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child,
    ):
        assert child.stdout.readline() == "ready\n"
        own, of_child = tree_bytes(os.getpid()), tree_bytes(child.pid)
        child.communicate("\n")
    assert size < of_child < 2 * size  # the interpreter itself takes some ten MB
    assert own > of_child
    assert peak.bytes > size
