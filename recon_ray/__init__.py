"""ReCon for point clouds as a distributed-training package on Ray.

The names below import what they need when they are first used; none of them needs Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from recon_ray.version import __version__

__all__ = ["__version__", "create_model", "embed", "load_model", "presets", "save_model"]

if TYPE_CHECKING:
    from recon_ray.api import create_model, embed, load_model, presets, save_model


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name in __all__:
        return getattr(import_module("recon_ray.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
