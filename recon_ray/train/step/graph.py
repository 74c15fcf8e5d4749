"""Training step as one CUDA graph, launched once by the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recon_ray.data.loading.batches import Batch

#: Steps that run eagerly first: they compile, tune and allocate what a capture must not.
WARMUP_STEPS = 3


class StepGraph:
    """Runs a step some times, then captures it, then replays it.

    Every call takes one whole step, warming up and capturing included. Random numbers follow the
    epoch, which the captured kernels read from the device, and the seed of torch's generator at
    the time of the replay.

    Args:
        run: Takes a step on a batch and a () int64 epoch, both on the device. It must not wait for
            the device, and all batches must have the same shapes.
        device: CUDA device.
    """

    def __init__(self, run: Callable[[Batch, Tensor], None], device: torch.device) -> None:
        self._run = run
        self._inputs: Batch = {}
        self._epoch = torch.zeros((), dtype=torch.int64, device=device)
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self, batch: Batch, epoch: int) -> None:
        """Take one step on a batch, which is on the CPU or the device."""
        for name, value in batch.items():
            if name not in self._inputs:
                self._inputs[name] = torch.empty_like(value, device=self._device)
            self._inputs[name].copy_(value, non_blocking=True)
        self._epoch.fill_(epoch)
        if self._calls < WARMUP_STEPS:
            self._calls += 1
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                self._run(self._inputs, self._epoch)
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            return
        if self._graph is None:
            torch.cuda.empty_cache()  # the graph has memory of its own
            self._graph = torch.cuda.CUDAGraph()
            # Only this thread's calls matter: another one prepares the next batches meanwhile.
            with torch.cuda.graph(
                self._graph, stream=self._stream, capture_error_mode="thread_local"
            ):
                self._run(self._inputs, self._epoch)
        self._graph.replay()
