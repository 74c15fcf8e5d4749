"""What ``torch.compile`` is asked for."""

from __future__ import annotations

from typing import Any, Literal

from torch._functorch import config as autograd_config

_MODES = {"default": None, "max": "max-autotune-no-cudagraphs"}


def compile_arguments(how: Literal["default", "max"]) -> dict[str, Any]:
    """Return the arguments of ``torch.compile`` and ``Module.compile`` for functions of one shape.

    What was compiled is found again by later processes, in torch's folder of compiled code.

    Args:
        how: ``max`` also times several kernels for each product.
    """
    # Torch leaves a graph that holds autograd functions of one's own out of that cache, unless it
    # is told otherwise. All that ours do is in their traced code, which is part of the cache's key.
    autograd_config.autograd_cache_allow_custom_autograd_functions = True
    return {"mode": _MODES[how], "dynamic": False}
