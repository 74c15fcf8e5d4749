"""What workers and driver tell each other when a run ends by an error."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import ray
import ray.train

from recon_ray.cluster import stop_actor as stop_actor
from recon_ray.cluster.stop_watch import end_together, outcome_of
from recon_ray.cluster.workarounds.reservations import note_submission
from recon_ray.cluster.worker import check_storage
from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.runs.folder import RunFolder

FAILURE = {"error": "CheckpointError", "message": "all checkpoints are damaged"}


class Handle:
    """The actor without Ray: its methods run where they are called."""

    def __init__(self) -> None:
        self.actor = stop_actor.StopActor()

    def __getattr__(self, name: str) -> SimpleNamespace:
        method = getattr(self.actor, name)
        return SimpleNamespace(remote=lambda *arguments: asyncio.run(method(*arguments)))


@pytest.fixture
def worker(monkeypatch):
    """Rank 1 of 2."""
    context = SimpleNamespace(get_world_rank=lambda: 1, get_world_size=lambda: 2)
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(stop_actor, "TOGETHER_SECONDS", 0.1)
    return Handle()


def broken() -> dict:
    raise CheckpointError(FAILURE["message"])


def test_what_one_worker_meets_is_raised(worker):
    with pytest.raises(CheckpointError):  # Ray ends the other one, which may wait for this one
        end_together(worker, broken)


def test_what_all_workers_meet_is_returned_and_raised_by_the_driver(worker):
    worker.actor._failed.add(0)
    outcome = end_together(worker, broken)
    assert outcome == FAILURE
    with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
        outcome_of(SimpleNamespace(return_value=outcome))


def test_other_errors_stay_what_they_are(worker):
    with pytest.raises(ZeroDivisionError):
        end_together(worker, lambda: {"metrics": 1 / 0})
    done = SimpleNamespace(return_value={"metrics": {"loss": 1.0}})
    assert outcome_of(done) == {"metrics": {"loss": 1.0}}


def test_a_folder_that_is_not_the_drivers_is_refused(tmp_path, monkeypatch):
    runtime = SimpleNamespace(get_node_id=lambda: "0123456789")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: runtime)
    (tmp_path / "here").mkdir()
    shared, other = RunFolder(str(tmp_path / "here")), RunFolder(str(tmp_path / "elsewhere"))
    note_submission(shared, "a1", "run")
    check_storage(shared, "a1")
    with pytest.raises(ConfigError, match=r"elsewhere on node 01234567 is not the folder that the"):
        check_storage(other, "a1")
    with pytest.raises(ConfigError):  # of an earlier submission
        check_storage(shared, "b2")
