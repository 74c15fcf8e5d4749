"""One optimizer step of this worker: eager, compiled, or replayed as one CUDA graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from recon_ray.data.loading.batches import Batch
from recon_ray.points.random import SampleGenerator
from recon_ray.train.feed.batching import BatchPlan
from recon_ray.train.feed.indexed import TrainFeed
from recon_ray.train.metrics import Mean, is_distributed
from recon_ray.train.settings import FitSettings
from recon_ray.train.step.compiling import compile_arguments
from recon_ray.train.step.exchange import FlatExchange
from recon_ray.train.step.graph import StepGraph
from recon_ray.train.step.half_weights import HalfWeights
from recon_ray.train.task import Task

#: What DistributedDataParallel calls its exchange of batch-norm statistics (renamed in torch 2.14).
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
#: Which independent random numbers of a step: see ``SampleGenerator(stream=...)``.
AUGMENT_STREAM, MODEL_STREAM = 0, 1


class Step:
    """Augmentation, losses, gradient, clipping and update of one batch.

    Args:
        task: What is trained.
        module: Its module, on the device.
        optimizer: Of the module's parameters.
        settings: Plain settings.
        plan: How a worker's share is cut into micro batches.
        feed: Where the batches come from, which may complete them on the device.
        device: Where the module is.
        rank: This worker.

    Attributes:
        meter: Sums of the losses since they were last read.
    """

    def __init__(
        self,
        task: Task,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        settings: FitSettings,
        plan: BatchPlan,
        feed: TrainFeed,
        device: torch.device,
        rank: int,
    ) -> None:
        self.settings = settings
        self.meter = Mean()
        self._optimizer = optimizer
        self._plan = plan
        self._feed = feed
        self._device = device
        self._rank = rank
        self._prepare_on_device = task.prepare_on_device
        self._module = module
        self._half: HalfWeights | None = None
        self._forward: Callable[[Batch, SampleGenerator], dict[str, Tensor]]
        self._exchange: FlatExchange | None = None
        bucketed = is_distributed() and settings.gradient_exchange == "bucketed"
        if is_distributed() and not bucketed:
            self._exchange = FlatExchange(
                module,
                precision=settings.gradient_precision,
                share_statistics=not settings.sync_batch_norm,
            )
        if bucketed:
            self._forward = self._module = self._wrapped(module, task)
        elif settings.compile != "off" and settings.precision == "bf16":
            self._forward = self._half = HalfWeights(module)
        else:
            self._forward = module
        if settings.compile != "off":
            arguments = compile_arguments(settings.compile)
            self._prepare_on_device = torch.compile(task.prepare_on_device, **arguments)
            if bucketed:
                module.compile(**arguments)
            else:
                self._forward = torch.compile(self._forward, **arguments)
        self._graph = StepGraph(self._run, device) if wants_graph(settings, device) else None
        self._lr = torch.zeros(len(optimizer.param_groups), device=device)
        if self._graph is not None:
            for group, lr in zip(optimizer.param_groups, self._lr, strict=True):
                group["lr"] = lr  # read from the device by each replay

    def __call__(self, batch: Batch, *, epoch: int, step: int, lr: list[float]) -> None:
        """Take the step.

        Args:
            batch: This worker's share, on the CPU.
            epoch: Number of the epoch, which varies augmentation and masks.
            step: Number of the step, from which dropout's numbers follow.
            lr: Learning rate of every parameter group.
        """
        self._set_seed(step)
        if self._graph is None:
            for group, value in zip(self._optimizer.param_groups, lr, strict=True):
                group["lr"] = value
            # A compiled step must not be compiled again for every epoch: a tensor is no constant.
            compiled = self.settings.compile != "off"
            self._run(batch, torch.full((), epoch, device=self._device) if compiled else epoch)
        else:
            for target, value in zip(self._lr, lr, strict=True):
                target.fill_(value)  # a copy from the host would wait for the steps before
            self._graph(batch, epoch)

    def _run(self, batch: Batch, epoch: int | Tensor) -> None:
        self._module.train()
        if self._half is not None:
            self._half.refresh()
        slices = self._plan.micro_slices()
        for i, part in enumerate(slices):
            micro = {
                name: value[part].to(self._device, non_blocking=True)
                for name, value in batch.items()
            }
            with self._no_sync(enabled=i < len(slices) - 1):
                losses = self._losses(micro, epoch)
                count = part.stop - part.start
                (losses["loss"] * (count / self._plan.per_worker)).backward()
            if self._half is not None:
                self._half.take_gradients()
            self.meter.update(losses, weight=count)
        if self._exchange is not None:
            self._exchange()
        if self.settings.double_step:
            self._optimizer.step()
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._module.parameters(), self.settings.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _losses(self, micro: Batch, epoch: int | Tensor) -> dict[str, Tensor]:
        ids, seed = micro["sample_id"], self.settings.seed
        with torch.no_grad(), self._autocast():
            whole = self._feed.gather_on_device(micro)
            enriched = self._prepare_on_device(
                whole, SampleGenerator(seed, ids, epoch, stream=AUGMENT_STREAM)
            )
        with self._autocast():
            return self._forward(enriched, SampleGenerator(seed, ids, epoch, stream=MODEL_STREAM))

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = self.settings.precision == "bf16"
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=enabled)

    def _no_sync(self, *, enabled: bool) -> AbstractContextManager[Any]:
        if enabled and isinstance(self._module, DistributedDataParallel):
            return self._module.no_sync()
        return nullcontext()

    def _set_seed(self, step: int) -> None:
        """Derive torch's generator (dropout) from the step, so that no state needs storing."""
        words = [self.settings.seed, step, self._rank]
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))

    def _wrapped(self, module: nn.Module, task: Task) -> nn.Module:
        sync: dict[str, Any] = {_SYNC_BUFFERS: not self.settings.sync_batch_norm}
        wrapped = DistributedDataParallel(
            module,
            device_ids=[self._device] if self._device.type == "cuda" else None,
            find_unused_parameters=task.has_unused_parameters,
            gradient_as_bucket_view=True,
            bucket_cap_mb=self.settings.bucket_megabytes,
            **sync,  # synchronized statistics are equal already
        )
        if self.settings.gradient_precision == "bf16":
            wrapped.register_comm_hook(None, bf16_compress_hook)
        return wrapped


def wants_graph(settings: FitSettings, device: torch.device) -> bool:
    """Tell whether steps are to be replayed as one CUDA graph: by default with one worker on a GPU.

    With several, hooks in the backward pass exchange the gradients, which is not captured; a flat
    exchange by NCCL is, with the collectives of synchronized batch norms.
    """
    if not settings.cuda_graph or device.type != "cuda":
        return False
    flat = settings.gradient_exchange == "flat"
    return not is_distributed() or (flat and dist.get_backend() == "nccl")
