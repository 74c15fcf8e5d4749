"""Ctrl-C while Ray Train runs means the same as everywhere else."""

from __future__ import annotations

import signal
import threading

import ray.train
from ray.train.torch import TorchTrainer


class InterruptibleTrainer(TorchTrainer):
    """A trainer whose :meth:`fit` is ended by Ctrl-C with ``KeyboardInterrupt``.

    Ray Train answers Ctrl-C with a handler of its own, which ends the workers and then this process
    with status 0, and which stays when the run has ended.
    """

    def fit(self) -> ray.train.Result:
        """Run the workers to the end.

        Raises:
            KeyboardInterrupt: On Ctrl-C, when the workers have been told to end.
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
