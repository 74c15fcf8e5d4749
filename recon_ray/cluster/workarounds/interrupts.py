"""Ctrl-C while Ray Train runs, with the same outcome as elsewhere."""

from __future__ import annotations

import signal
import threading

import ray.train
from ray.train.torch import TorchTrainer


class InterruptibleTrainer(TorchTrainer):
    """A trainer whose :meth:`fit` raises ``KeyboardInterrupt`` on Ctrl-C.

    Works around: ``fit`` installs a SIGINT handler that ends the workers and then this process with
    status 0, and leaves the handler installed when the run has ended.
    Seen on: Ray 2.60.0.
    Can go: When ``fit`` raises ``KeyboardInterrupt`` and restores the handler.
    """

    def fit(self) -> ray.train.Result:
        """Run the workers to the end.

        Raises:
            KeyboardInterrupt: On Ctrl-C, after the workers have been asked to end.
        """
        if threading.current_thread() is not threading.main_thread():
            return super().fit()  # in a trial: Ray Train installs no handler
        before = signal.getsignal(signal.SIGINT)
        try:
            return super().fit()
        except SystemExit:
            raise KeyboardInterrupt from None
        finally:
            signal.signal(signal.SIGINT, before)
