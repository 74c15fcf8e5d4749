"""Activation checkpointing: compute in the backward pass again what would else be kept.

The idea is that of "Training Deep Nets with Sublinear Memory Cost" (Chen et al., 2016).

What is computed again must have no effect beyond its result: random numbers come in as tensors, and
batch statistics go out, so that they are noted once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


class Checkpointing(nn.Module):
    """A module that can keep the inputs of its parts in place of their activations.

    Attributes:
        checkpointing: Do so in training.
    """

    checkpointing = False

    def _call(self, part: Callable[..., T], *arguments: Any, **options: Any) -> T:  # noqa: ANN401
        """Call a part; in the backward pass it is perhaps called again.

        Args:
            part: Without effect beyond its result, and without torch's random generator.
            arguments: What it is called with; tensors among them are kept.
            options: What is small, by name.
        """
        if not (self.checkpointing and torch.is_grad_enabled()):
            return part(*arguments, **options)
        result: T = checkpoint(
            part, *arguments, use_reentrant=False, preserve_rng_state=False, **options
        )
        return result
