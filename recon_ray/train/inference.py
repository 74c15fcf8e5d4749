"""Functions of tensors without gradient, as fast as the device allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from recon_ray.config.sections.common import RuntimeSection
from recon_ray.models.transformer import Attention, CrossAttention, Mlp
from recon_ray.train.step.compiling import compile_arguments

ModuleT = TypeVar("ModuleT", bound=nn.Module)

#: From tensors whose first axis is the batch to named results.
Function: TypeAlias = Callable[..., Mapping[str, Tensor]]


@dataclass(frozen=True)
class Inference:
    """Way in which models are evaluated.

    Attributes:
        precision: ``fp32`` or ``bf16`` (autocast of the transformer; geometry stays float32).
        compile: ``default`` or ``max`` compiles what is computed for a whole batch.
        cuda_graph: Replay whole batches as one CUDA graph, on GPUs.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    compile: Literal["off", "default", "max"] = "off"
    cuda_graph: bool = True

    @classmethod
    def while_training(
        cls, runtime: RuntimeSection, precision: Literal["fp32", "bf16"]
    ) -> Inference:
        """Return that of evaluations between two steps, which are too short to be compiled anew."""
        return cls(precision, cuda_graph=runtime.cuda_graph == "auto")

    def place(self, model: ModuleT, device: torch.device) -> ModuleT:
        """Return a finished model on the device, in evaluation mode.

        With ``bf16`` it is a copy whose transformer weights are rounded now and not by autocast in
        every batch, where that takes as many kernels as the products; the results are the same.

        Args:
            model: A model whose weights do not change any more.
            device: Where it computes.
        """
        model = model.to(device).eval()
        if self.precision == "fp32":
            return model
        model = deepcopy(model)
        for module in model.modules():
            if isinstance(module, Attention | CrossAttention | Mlp):  # nothing but products
                module.bfloat16()
        return model

    def prepare(self, function: Function, device: torch.device) -> Function:
        """Return a function that computes the same, in float32 at the end; without gradient.

        Args:
            function: Called with tensors on the device. Captured once, so everything that varies
                from call to call must come in as a tensor.
            device: Where it computes.
        """
        return _Prepared(function, device, self)


class _Prepared:
    """Compiles and captures a function for the shapes of its first call; others run eagerly."""

    def __init__(self, function: Function, device: torch.device, how: Inference) -> None:
        self._eager = function
        self._whole = function
        if how.compile != "off":
            self._whole = torch.compile(function, **compile_arguments(how.compile))
        self._device = device
        self._half = how.precision == "bf16"
        self._captures = how.cuda_graph and device.type == "cuda"
        self._shapes: list[torch.Size] | None = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: Mapping[str, Tensor] = {}

    def __call__(self, *tensors: Tensor) -> dict[str, Tensor]:
        shapes = [tensor.shape for tensor in tensors]
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:  # the last, incomplete batch
            return self._run(self._eager, tensors)
        self._calls += 1
        if not self._captures or self._calls == 1:
            return self._run(self._whole, tensors)
        if self._graph is None:
            self._capture(tensors)
        assert self._graph is not None
        for mine, given in zip(self._inputs, tensors, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return {name: value.clone() for name, value in self._outputs.items()}

    def _run(self, function: Function, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._half):
            results = function(*tensors)
        return {
            name: value.float() if value.dtype == torch.bfloat16 else value
            for name, value in results.items()
        }

    def _capture(self, tensors: tuple[Tensor, ...]) -> None:
        self._inputs = [tensor.clone() for tensor in tensors]
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):  # once more here: libraries set up a stream at first use
            self._run(self._whole, tuple(self._inputs))
        torch.cuda.current_stream(self._device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._outputs = self._run(self._whole, tuple(self._inputs))
