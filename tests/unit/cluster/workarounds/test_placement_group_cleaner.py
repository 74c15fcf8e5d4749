"""What the settings for Ray Train's cleaner rely on."""

from __future__ import annotations

import inspect
import logging
import os
import threading
from types import SimpleNamespace

import pytest
import ray
from ray._private import services
from ray.dashboard import utils
from ray.train.v2._internal.execution.controller import placement_group_cleaner as cleaner

from recon_ray.cluster.workarounds.placement_group_cleaner import (
    CLEANER,
    name_cluster,
    quiet_cleaner,
)


def test_the_cleaner_still_warns_without_a_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, quieting can go."""
    assert cleaner.logger.name == CLEANER
    assert "RayStateApiException:\n                logger.warning" in inspect.getsource(cleaner)
    monkeypatch.setattr(cleaner.logger, "level", logging.NOTSET)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://another:8265")  # of the user's shell
    quiet_cleaner()
    assert not cleaner.logger.isEnabledFor(logging.WARNING)
    cleaner.logger.setLevel(logging.NOTSET)


def test_the_query_without_a_dashboard_looks_for_no_other_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two clusters on one machine end the cleaner's thread, by an error that it does not catch."""
    found = {"127.0.0.1:6379", "127.0.0.1:6380"}
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: found)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    watched = cleaner.PlacementGroupCleaner("0" * 32, 0.01, 2, 1.0)
    with pytest.raises(ConnectionError, match="multiple active Ray instances"):
        watched._monitor_loop()
    quiet_cleaner()
    monitor = threading.Thread(target=watched._monitor_loop)
    monitor.start()
    monitor.join(0.5)
    assert monitor.is_alive()  # it asks in vain, and warns where nobody reads it
    watched._stop_event.set()
    monitor.join(20)
    cleaner.logger.setLevel(logging.NOTSET)


def test_the_query_takes_its_cluster_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, naming the cluster can go."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://another:8265")
    context = SimpleNamespace(gcs_address="127.0.0.1:6379")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    asked: list[str] = []
    monkeypatch.setattr(utils, "ray_address_to_api_server_url", asked.append)
    name_cluster()
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "127.0.0.1:6379"
    utils.get_address_for_submission_client("auto")
    assert asked == ["127.0.0.1:6379"]
