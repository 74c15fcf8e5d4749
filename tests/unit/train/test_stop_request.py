"""What becomes of a SIGTERM where the training loop hears of it, and where it does not."""

from __future__ import annotations

import os
import signal
import time

import pytest

from recon_ray.errors import StoppedError
from recon_ray.train import stop_request as notices
from recon_ray.train.runtime import LocalRuntime
from recon_ray.train.stop_request import StopRequest, sigterm_as_stop_request, stop_requested


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(notices, "ANSWER_SECONDS", 0.2)


@pytest.fixture
def ended():
    """Calls of the handlers of SIGTERM and SIGINT that were there before."""
    calls: list[int] = []

    def interrupted(number, frame):
        calls.append(number)
        raise KeyboardInterrupt

    before = (
        signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number)),
        signal.signal(signal.SIGINT, interrupted),
    )
    yield calls
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def evaluate_under(number: int) -> None:
    with sigterm_as_stop_request():
        os.kill(os.getpid(), number)
        time.sleep(30)


def test_a_run_that_does_not_hear_is_ended_as_by_ctrl_c(ended):
    began = time.monotonic()
    with pytest.raises(StoppedError, match=r"in 0\.2 s, and the same") as stopped:
        evaluate_under(signal.SIGTERM)
    assert stopped.value.exit_code == 143
    assert time.monotonic() - began < 10
    assert ended == [signal.SIGINT]
    assert not stop_requested().is_set()
    terminate()
    assert ended == [signal.SIGINT, signal.SIGTERM]


def test_a_run_that_hears_takes_the_time_it_needs(ended):
    runtime = object.__new__(LocalRuntime)
    for _ in range(2):  # the second time as the first
        with sigterm_as_stop_request():
            assert runtime.stop_request() is StopRequest.NONE
            terminate()
            assert runtime.stop_request() is StopRequest.STOP
            time.sleep(0.5)  # commits
    assert ended == []


def test_a_second_sigterm_ends_at_once(ended):
    with sigterm_as_stop_request():
        terminate()
        terminate()
        assert ended == [signal.SIGTERM]


def test_ctrl_c_stays_what_it_is(ended):
    with pytest.raises(KeyboardInterrupt):
        evaluate_under(signal.SIGINT)
    assert ended == [signal.SIGINT]
