"""What `shut_down` relies on; `test_leaving_on_ray.py` shows that it is needed."""

from __future__ import annotations

import inspect
import threading

import pytest
import ray
from ray._private import auto_init_hook
from ray.data._internal.block_batching import util
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from recon_ray.cluster.workarounds.ray_shutdown import shut_down


def test_the_executors_of_ray_data_are_threads_that_can_be_ended() -> None:
    assert issubclass(StreamingExecutor, threading.Thread)
    assert StreamingExecutor.__module__.startswith("ray.data.")
    assert "force" in inspect.signature(StreamingExecutor.shutdown).parameters
    assert 'name="iter_threaded"' in inspect.getsource(util.iter_threaded)
    assert "enable_auto_connect" in inspect.getsource(auto_init_hook.auto_init_ray)


def test_ray_does_not_end_them_by_itself() -> None:
    """Without this, the workaround can go."""
    assert "StreamingExecutor" not in inspect.getsource(ray.shutdown)


def test_executors_end_before_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Executor(threading.Thread):
        ended = threading.Event()

        def run(self) -> None:
            self.ended.wait(20)
            order.append("executor")

        def shutdown(self, force: bool) -> None:
            self.ended.set()

    Executor.__module__ = "ray.data.test"
    monkeypatch.setattr(auto_init_hook, "enable_auto_connect", True)
    monkeypatch.setattr(ray, "shutdown", lambda: order.append("connection"))
    Executor(daemon=True).start()
    shut_down()
    assert order == ["executor", "connection"]
    assert not auto_init_hook.enable_auto_connect
