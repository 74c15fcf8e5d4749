"""Counted costs of large sets and long runs."""

from __future__ import annotations

from recon_ray.benchmarks.config import BenchmarkConfig
from recon_ray.benchmarks.scale import measure_scale
from recon_ray.benchmarks.scale_set import opening_costs, preparing_costs, reader_bytes
from recon_ray.runs.folder import RunFolder


def test_a_set_opens_by_as_many_requests_whatever_its_size():
    few, many = (opening_costs(shards, latency=0.0) for shards in (10, 20_000))
    assert few.requests == many.requests <= 10
    assert many.read < 100 * 20_000
    assert abs(reader_bytes(20_000) - reader_bytes(10)) < 100  # numbers of more digits


def test_preparing_asks_the_store_less_than_once_a_shard():
    cost = preparing_costs(1000)
    assert cost.requests < 100
    assert cost.written < 100 * 1000


def test_the_table_has_every_part(tmp_path):
    sizes = {
        "shards": 100, "latency": 0.0, "prepared_shards": 100, "captions": 100, "samples": 1000,
        "commits": 3, "kept_checkpoints": [1, 2],
    }  # fmt: skip
    config = BenchmarkConfig.model_validate({"what": "scale", "scale": sizes})
    metrics, table = measure_scale(config, RunFolder(str(tmp_path)))
    for part in ("open a set of 100", "prepare 10 ", "captions", "ledger", "records", "beside 2"):
        assert part in table
    assert metrics["checkpoints_1/commit_requests"] == metrics["checkpoints_2/commit_requests"]
    assert all(value >= 0 for name, value in metrics.items() if not name.endswith("megabytes"))
