"""Half-precision copies of all weights of matrix products, cast at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from recon_ray.torch_internals import add_tensors, copy_tensors


class HalfWeights:
    """Runs a module with bfloat16 copies of its products' weights.

    Autocast computes the same: it casts each weight before its product and each gradient after it,
    in two kernels a weight. Here two kernels do so for all of them.

    Args:
        module: The module; its own parameters stay float32 and are the ones that are optimized.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
        weights = {f"{name}.weight": module.get_submodule(name).weight for name in names}
        self._weights = [weight for weight in weights.values() if isinstance(weight, Tensor)]
        self._copies = [
            weight.detach().bfloat16().requires_grad_(weight.requires_grad)
            for weight in self._weights
        ]
        self._by_name = dict(zip(weights, self._copies, strict=True))

    def refresh(self) -> None:
        """Copy the current weights."""
        with torch.no_grad():
            copy_tensors(self._copies, self._weights)

    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401 - what the module takes and gives
        """Run the module with the copies."""
        return functional_call(self._module, self._by_name, arguments)

    def take_gradients(self) -> None:
        """Add the gradients of the copies to those of the weights, and drop them."""
        weights, gradients = [], []
        for weight, copy in zip(self._weights, self._copies, strict=True):
            if copy.grad is not None:
                weights.append(weight)
                gradients.append(copy.grad)
                copy.grad = None
        sums = [weight.grad for weight in weights if weight.grad is not None]
        if sums:  # of an earlier micro batch
            add_tensors(sums, gradients)
            return
        sums = [torch.empty_like(weight) for weight in weights]
        copy_tensors(sums, gradients)
        for weight, gradient in zip(weights, sums, strict=True):
            weight.grad = gradient
