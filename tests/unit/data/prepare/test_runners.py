from __future__ import annotations

import pytest

from recon_ray.data.prepare import runners as progress
from recon_ray.data.prepare.runners import ShardProgress


@pytest.mark.parametrize(("units", "shown"), [(2, "0.2 shapes/s"), (4000, "400 shapes/s")])
def test_a_slow_rate_is_not_rounded_to_nothing(units, shown, monkeypatch, caplog):
    now = iter((100.0, 110.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    caplog.set_level("INFO", logger="recon_ray")
    ShardProgress("prepare", shards=2, units=2 * units, unit="shapes").add(units)
    assert caplog.messages == [f"prepare: 1/2 shards, {shown}, about 10 s left"]
