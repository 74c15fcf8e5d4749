"""Mechanics of one optimizer step: eager, compiled, or replayed as one CUDA graph.

The order of what happens in a step is :func:`recon_ray.train.loop.take_step`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
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
from recon_ray.train.step.exchange import FlatExchange, StatisticsExchange
from recon_ray.train.step.graph import StepGraph
from recon_ray.train.step.half_weights import HalfWeights
from recon_ray.train.task import Task

#: What DistributedDataParallel calls its exchange of batch-norm statistics (renamed in torch 2.14).
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
#: Samples with which it is found out which parameters get no gradient.
TRIED_SAMPLES = 2
#: Independent streams of random numbers in a step: see ``SampleGenerator(stream=...)``.
AUGMENT_STREAM, MODEL_STREAM = 0, 1


class Step:
    """Parts of a step, and how they are run.

    Args:
        take: The order of the parts: takes this object, a batch and the epoch.
        module: The task's module, on the device.
        plan: Cut of a worker's share into micro batches.
        feed: Source of the batches, which may gather rows on the device.

    Attributes:
        meter: Sums of the losses since they were last read.
    """

    def __init__(
        self,
        take: Callable[[Step, Batch, int | Tensor], None],
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
        self.optimizer = optimizer
        self._plan = plan
        self._feed = feed
        self._device = device
        self._rank = rank
        self._take = take
        self._prepare_on_device = task.prepare_on_device
        self.module = module
        self._half: HalfWeights | None = None
        self._forward: Callable[[Batch, SampleGenerator], dict[str, Tensor]] = module
        self._exchange: FlatExchange | None = None
        self._share_statistics: StatisticsExchange | None = None
        train, compiles = settings.config.train, settings.config.runtime.compile
        self._is_bucketed = is_distributed() and train.gradient_exchange == "bucketed"
        if is_distributed() and not train.sync_batch_norm:
            self._share_statistics = StatisticsExchange(module)
        if is_distributed() and not self._is_bucketed:
            self._exchange = FlatExchange(module, precision=train.gradient_precision)
        if compiles != "off" and settings.precision == "bf16" and not self._is_bucketed:
            self._forward = self._half = HalfWeights(module)
        if compiles != "off" and not self._is_bucketed:
            arguments = compile_arguments(compiles)
            self._prepare_on_device = torch.compile(task.prepare_on_device, **arguments)
            self._forward = torch.compile(self._forward, **arguments)
        self._graph = StepGraph(self._run, device) if wants_graph(settings, device) else None
        self._lr = torch.zeros(len(optimizer.param_groups), device=device)
        if self._graph is not None:
            for group, lr in zip(optimizer.param_groups, self._lr, strict=True):
                group["lr"] = lr  # read from the device by each replay

    def __call__(self, batch: Batch, *, epoch: int, step: int, lr: list[float]) -> None:
        """Take one step.

        Args:
            batch: This worker's share, on the CPU.
            epoch: Number of the epoch, which varies augmentation and masks.
            step: Number of the step, from which dropout's numbers follow.
            lr: Learning rate of every parameter group.
        """
        if self._is_bucketed and not isinstance(self.module, DistributedDataParallel):
            self._wrap(batch, epoch)
        self._set_seed(step)
        if self._graph is None:
            for group, value in zip(self.optimizer.param_groups, lr, strict=True):
                group["lr"] = value
            # A compiled step must not be compiled again for every epoch: a tensor is no constant.
            compiled = self.settings.config.runtime.compile != "off"
            self._run(batch, torch.full((), epoch, device=self._device) if compiled else epoch)
        else:
            for target, value in zip(self._lr, lr, strict=True):
                target.fill_(value)  # a copy from the host would wait for the steps before
            self._graph(batch, epoch)

    def _run(self, batch: Batch, epoch: int | Tensor) -> None:
        self.module.train()
        if self._half is not None:
            self._half.refresh()
        self._take(self, batch, epoch)

    def micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, float, bool]]:
        """Cut a worker's share into micro batches on the device.

        Yields:
            The micro batch, the weight of its loss, and whether its gradients are exchanged.
        """
        slices = self._plan.micro_slices(self._rank)
        for i, part in enumerate(slices):
            micro = {
                name: value[part].to(self._device, non_blocking=True)
                for name, value in batch.items()
            }
            weight = self._plan.weight(part.stop - part.start)
            yield micro, weight, i == len(slices) - 1

    def losses(self, micro: Batch, epoch: int | Tensor) -> dict[str, Tensor]:
        """Prepare a micro batch on the device and run the module: name to () loss."""
        ids, seed = micro["sample_id"], self.settings.config.run.seed
        with torch.no_grad(), self._autocast():
            whole = self._feed.gather_on_device(micro)
            source = SampleGenerator(seed, ids, epoch, stream=AUGMENT_STREAM)
            prepared = self._prepare_on_device(whole, source)
        with self._autocast():
            return self._forward(prepared, SampleGenerator(seed, ids, epoch, stream=MODEL_STREAM))

    def collect(self, losses: dict[str, Tensor], count: int) -> None:
        """Add half-precision gradients to the weights' own, and the losses to the meter."""
        if self._half is not None:
            self._half.take_gradients()
        self.meter.update(losses, weight=count)

    def exchange_gradients(self) -> None:
        """Average the gradients over the workers, unless the backward pass has done so."""
        if self._exchange is not None:
            self._exchange()
        if self._share_statistics is not None:
            self._share_statistics()

    def gradient_exchange(self, *, enabled: bool) -> AbstractContextManager[Any]:
        """Exchange gradients in the backward pass, or leave that to a later micro batch."""
        if not enabled and isinstance(self.module, DistributedDataParallel):
            return self.module.no_sync()
        return nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = self.settings.precision == "bf16"
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=enabled)

    def _set_seed(self, step: int) -> None:
        """Derive torch's generator (dropout) from the step, so that no state needs storing."""
        words = [self.settings.config.run.seed, step, self._rank]
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))

    def _wrap(self, batch: Batch, epoch: int) -> None:
        """Let the backward pass of the module exchange the gradients, in buckets."""
        config, module = self.settings.config, self.module
        sync: dict[str, Any] = {_SYNC_BUFFERS: False}
        wrapped = DistributedDataParallel(
            module,
            device_ids=[self._device] if self._device.type == "cuda" else None,
            find_unused_parameters=self._has_unused_parameters(batch, epoch),
            gradient_as_bucket_view=True,
            bucket_cap_mb=config.train.bucket_megabytes,
            **sync,  # statistics are equal after every step
        )
        if config.train.gradient_precision == "bf16":
            wrapped.register_comm_hook(None, bf16_compress_hook)
        if config.runtime.compile != "off":
            arguments = compile_arguments(config.runtime.compile)
            self._prepare_on_device = torch.compile(self._prepare_on_device, **arguments)
            module.compile(**arguments)
        self._forward = self.module = wrapped

    def _has_unused_parameters(self, batch: Batch, epoch: int) -> bool:
        """Return whether a step leaves parameters without gradient, on any worker.

        Which ones depends on the model and its losses; two samples are differentiated to see it.
        Afterwards the module is as before.
        """
        self.module.train()
        buffers = [(value, value.clone()) for value in self.module.buffers()]
        few = {name: value[:TRIED_SAMPLES].to(self._device) for name, value in batch.items()}
        trained = [one for one in self.module.parameters() if one.requires_grad]
        loss = self.losses(few, epoch)["loss"]
        found = torch.autograd.grad(loss, trained, allow_unused=True)
        for value, before in buffers:
            value.copy_(before)
        unused = torch.tensor(any(one is None for one in found), device=self._device).int()
        dist.all_reduce(unused)
        return bool(unused)


def wants_graph(settings: FitSettings, device: torch.device) -> bool:
    """Return whether steps are replayed as one CUDA graph: by default with one worker on a GPU.

    With several, hooks in the backward pass exchange the gradients, which is not captured; a flat
    exchange by NCCL is, with the collectives of synchronized batch norms.
    """
    config = settings.config
    if config.runtime.cuda_graph == "off" or device.type != "cuda":
        return False
    flat = config.train.gradient_exchange == "flat"
    return not is_distributed() or (flat and dist.get_backend() == "nccl")
