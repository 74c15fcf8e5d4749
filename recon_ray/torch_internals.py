"""Private names of torch that the package needs; no other module uses any.

Each function states what it works around, the version that it was seen on, and when it can go. Its
test in ``tests/unit/test_torch_internals.py`` fails when torch has changed what it relies on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as autograd_config
from torch.distributed.distributed_c10d import _get_default_store
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def default_store() -> Any:  # noqa: ANN401 - a store of torch.distributed
    """Return the key-value store through which the workers have found each other.

    Works around: A collective cannot wait longer than its timeout, and no public function returns
    the store of a process group that somebody else (Ray Train) has created.
    Seen on: torch 2.14.1.
    Can go: When there is a public one.
    """
    return _get_default_store()


def cache_custom_autograd_functions() -> None:
    """Let torch keep compiled graphs that hold custom autograd functions for later processes.

    Works around: By default such graphs are compiled anew in every process, because torch cannot
    see whether the functions read something outside the graph. Ours do not.
    Seen on: torch 2.14.1.
    Can go: When such graphs are cached by default.
    """
    autograd_config.autograd_cache_allow_custom_autograd_functions = True


def copy_tensors(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors into others of the same shapes, with as few kernels as possible.

    Works around: The public loop over ``Tensor.copy_`` starts one kernel a tensor.
    Seen on: torch 2.14.1.
    Can go: When the multi-tensor operations are public.
    """
    torch._foreach_copy_(targets, sources)


def add_tensors(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Add tensors to others of the same shapes in place; otherwise as :func:`copy_tensors`."""
    torch._foreach_add_(targets, sources)


class DispatchMode(TorchDispatchMode):
    """A context that sees every operation on tensors: subclasses define ``__torch_dispatch__``.

    Works around: torch has no public allocator statistics on CPUs.
    Seen on: torch 2.14.1.
    Can go: When there are some, or the class has a public module.
    """


def storages(values: Any) -> dict[int, torch.UntypedStorage]:  # noqa: ANN401 - any nesting
    """Return the storages of the tensors in nested containers, each by its identity.

    Works around: Python objects of one storage come and go, so that ``id`` does not identify it.
    Seen on: torch 2.14.1.
    Can go: When storages can be compared or hashed.
    """
    found = (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return {storage._cdata: storage for storage in found}
