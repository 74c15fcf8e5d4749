"""Stop requests, node drains and errors between the driver and the workers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import ray
import ray.train
from ray.train import PreemptionInfo

from recon_ray.cluster import stop_actor as stop_actor
from recon_ray.cluster.stop_watch import StopWatcher, end_together, outcome_of
from recon_ray.cluster.worker import check_storage
from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.runs.folder import RunFolder
from recon_ray.runs.journal import Journal
from recon_ray.train.stop_request import StopRequest

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


def test_what_one_worker_meets_is_raised_as_it_is(worker):
    with pytest.raises(CheckpointError):  # Ray ends the other one, which may wait for this one
        end_together(worker, broken)
    with pytest.raises(ZeroDivisionError):
        end_together(worker, lambda: {"metrics": 1 / 0})
    done = SimpleNamespace(return_value={"metrics": {"loss": 1.0}})
    assert outcome_of(done) == {"metrics": {"loss": 1.0}}


def test_what_all_workers_meet_is_returned_and_raised_by_the_driver(worker):
    worker.actor._failed.add(0)
    outcome = end_together(worker, broken)
    assert outcome == FAILURE
    with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
        outcome_of(SimpleNamespace(return_value=outcome))


def test_a_folder_that_is_not_the_drivers_is_refused(tmp_path, monkeypatch):
    runtime = SimpleNamespace(get_node_id=lambda: "0123456789")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: runtime)
    (tmp_path / "here").mkdir()
    shared, other = RunFolder(str(tmp_path / "here")), RunFolder(str(tmp_path / "elsewhere"))
    Journal(shared).add("submitted", attempt="a1", run_id="run")
    check_storage(shared, "a1")
    with pytest.raises(ConfigError, match=r"elsewhere on node 01234567 is not the folder that the"):
        check_storage(other, "a1")
    with pytest.raises(ConfigError):  # of an earlier submission
        check_storage(shared, "b2")


# --- Requests -----------------------------------------------------------------------------------
class Requests:
    """The actor as the watcher of rank 0 uses it, and what Ray Train knows of preemptions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.leaving: dict[str, list[int]] = {}
        self.is_requested = False
        self.taken = 0
        monkeypatch.setattr(ray.train, "get_preemption_info", self._preemption)
        monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs * self.is_requested, []))

    def _preemption(self) -> PreemptionInfo | None:
        return PreemptionInfo(None, self.leaving) if self.leaving else None

    def __getattr__(self, name: str) -> SimpleNamespace:
        def remote() -> str:
            self.taken += name == "take"
            return "reference"

        return SimpleNamespace(remote=remote)


def test_each_node_that_will_leave_is_one_commit_and_a_stop_lasts(monkeypatch):
    requests = Requests(monkeypatch)
    watch = StopWatcher(requests, rank=0)
    assert watch.take() is StopRequest.NONE
    requests.leaving = {"node1": [0]}
    assert [watch.take(), watch.take()] == [StopRequest.COMMIT, StopRequest.NONE]
    assert watch.reason == "1 of its nodes will leave"
    requests.leaving = {"node1": [0], "node2": [1]}
    assert [watch.take(), watch.take()] == [StopRequest.COMMIT, StopRequest.NONE]
    requests.is_requested = True
    assert [watch.take(), watch.take()] == [StopRequest.STOP] * 2
    assert (watch.reason, requests.taken) == ("by SIGTERM to the driver", 2)


def test_the_other_ranks_take_part_and_request_nothing(monkeypatch):
    requests = Requests(monkeypatch)
    requests.leaving, requests.is_requested = {"node1": [0]}, True
    assert StopWatcher(requests, rank=1).take() is StopRequest.NONE


def test_a_request_returns_once_the_loop_has_taken_it():
    async def pass_on() -> list[str]:
        actor, order = stop_actor.StopActor(), []

        async def driver() -> None:
            await actor.request()
            order.append("driver")

        async def worker() -> None:
            await actor.requested()
            order.append("worker")
            await actor.take()

        await asyncio.gather(driver(), worker())
        return order

    assert asyncio.run(pass_on()) == ["worker", "driver"]
