"""Arguments of ``torch.compile``."""

from __future__ import annotations

from typing import Any, Literal

from recon_ray.torch_internals import cache_custom_autograd_functions

_MODES = {"default": None, "max": "max-autotune-no-cudagraphs"}


def compile_arguments(how: Literal["default", "max"]) -> dict[str, Any]:
    """Return the arguments of ``torch.compile`` and ``Module.compile`` for functions of one shape.

    Later processes find the compiled code in torch's cache folder.

    Args:
        how: ``max`` also times several kernels for each product.
    """
    cache_custom_autograd_functions()
    return {"mode": _MODES[how], "dynamic": False}
