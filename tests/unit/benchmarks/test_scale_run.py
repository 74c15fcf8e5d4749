"""What a batch, a commit and a restart cost does not grow with the set or the run's age."""

from __future__ import annotations

from recon_ray.benchmarks.scale_run import (
    checkpoint_costs,
    ledger_costs,
    record_costs,
)


def test_ended_epochs_are_small():
    costs = ledger_costs(5_000_000)
    assert costs["stored_bytes"] < 100_000


def test_a_commit_sends_its_new_records_and_a_constant():
    *commits, restart = record_costs(150)
    assert max(one["requests"] for one in commits[1:]) <= 3
    new = commits[0]["write"]
    assert max(one["write"] for one in commits) < (1 << 18) + (1 << 19) + 2 * new
    assert sum(one["write"] for one in commits) > (1 << 20)  # of a long history
    assert restart["read"] < (1 << 19)
    assert restart["write"] == 0


def test_a_commit_and_a_start_take_as_many_requests_beside_3_and_1000_checkpoints():
    few, many = (checkpoint_costs(kept) for kept in (3, 1000))
    for name, costs in few.items():
        assert many[name]["requests"] == costs["requests"], name
        assert abs(many[name]["read"] - costs["read"]) < 20
    assert few["commit"]["requests"] <= 7
