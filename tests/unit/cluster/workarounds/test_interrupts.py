"""Ctrl-C in Ray Train; `tests/integration/test_interrupts_on_ray.py` sends one."""

from __future__ import annotations

import inspect
import signal

import pytest
from ray.train.torch import TorchTrainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from recon_ray.cluster.workarounds.interrupts import InterruptibleTrainer


def test_ray_train_still_ends_the_process_on_ctrl_c() -> None:
    """Without this, the workaround can go."""
    source = inspect.getsource(DataParallelTrainer)
    assert "signal.signal(signal.SIGINT, sigint_handler)" in source
    assert "sys.exit(0)" in source


def test_ctrl_c_is_a_keyboard_interrupt_and_handlers_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exit_as_ray_does(self: TorchTrainer) -> None:
        signal.signal(signal.SIGINT, lambda *_: None)
        raise SystemExit(0)

    monkeypatch.setattr(TorchTrainer, "fit", exit_as_ray_does)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        InterruptibleTrainer.__new__(InterruptibleTrainer).fit()
    assert signal.getsignal(signal.SIGINT) is before
