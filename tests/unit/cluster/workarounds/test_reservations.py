"""What the reservations rely on; `tests/integration/test_elastic_on_ray.py` shows their effect."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import ray
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as ours
from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client as theirs
from ray.train.v2._internal.execution.scaling_policy import scaling_policy

from recon_ray.cluster.workarounds import reservations

ACTOR = ours._AutoscalingCoordinatorActor


def test_the_coordinator_is_found_and_takes_the_calls() -> None:
    creation = inspect.getsource(ours.get_or_create_autoscaling_coordinator)
    for key in ("name", "namespace"):
        assert f'{key}="{reservations.COORDINATOR}"' in creation
    assert list(inspect.signature(ACTOR.cancel_request).parameters) == ["self", "requester_id"]
    assert 'f"train-{train_run_context.run_id}"' in inspect.getsource(scaling_policy)


def test_nodes_can_be_refreshed_since_ray_2_60() -> None:
    version = tuple(int(part) for part in ray.__version__.split(".")[:2])
    parameters = inspect.signature(ACTOR.get_reserved_resources).parameters
    assert ("recompute" in parameters) == (version >= (2, 60))


def test_a_dead_driver_still_keeps_its_reservation_for_minutes() -> None:
    """Without this, releasing can go."""
    assert theirs.AUTOSCALING_REQUESTS_EXPIRE_TIME_S >= 60


@pytest.mark.parametrize("error", [ValueError("no such actor"), TypeError("no such argument")])
def test_a_missing_coordinator_is_fine(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ray, "get_actor", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    reservations.release_reservation("run")
    thread = reservations.refresh_nodes_after_failure()
    thread.join(10)
    assert not thread.is_alive()


def test_the_reservation_of_the_run_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[str] = []
    coordinator = SimpleNamespace(cancel_request=SimpleNamespace(remote=released.append))
    monkeypatch.setattr(ray, "get_actor", lambda *_, **__: coordinator)
    monkeypatch.setattr(ray, "get", lambda *_, **__: None)
    reservations.release_reservation("a1")
    assert released == ["train-a1"]
