"""Load the compiled library and say how it was built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).resolve().parent
BUILD_COMMAND = "pip install --no-build-isolation ./ops"


class OpsError(ImportError):
    """The compiled library is missing or does not fit the installed torch."""


def _recorded() -> dict[str, Any]:
    """Read what the build wrote beside the library."""
    path = _FOLDER / "_build.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def load_library() -> None:
    """Load the operators into torch.

    Raises:
        OpsError: If there is no library, or torch cannot load it.
    """
    library = _FOLDER / "_C.abi3.so"
    if not library.is_file():
        raise OpsError(f"recon_ops has no compiled library at {library}; build it: {BUILD_COMMAND}")
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        built = _recorded()
        raise OpsError(
            f"{library} does not load: {error}; it was built for torch {built.get('torch')} with "
            f"CUDA {built.get('cuda')}, installed is torch {torch.__version__} with CUDA "
            f"{torch.version.cuda}; rebuild it: {BUILD_COMMAND}"
        ) from error


def _has_kernels(key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key("recon_ops::furthest_point_sample", key)


def build_info() -> dict[str, Any]:
    """Describe the build.

    Returns:
        ``version``; ``torch`` it was built with and ``target_torch``, the oldest that loads it;
        ``backends``, those with kernels; ``cuda`` and ``architectures`` of the CUDA kernels, or
        None and an empty list; ``cpu_flags`` and ``cpu_instructions``, the ones in use here.
    """
    from recon_ops import __version__

    backends = [name for name, key in (("cpu", "CPU"), ("cuda", "CUDA")) if _has_kernels(key)]
    instructions = torch.ops.recon_ops.cpu_instructions()
    built = {"version": __version__, **_recorded(), "backends": backends}
    return {**built, "cpu_instructions": ("baseline", "avx2", "avx512")[instructions]}
