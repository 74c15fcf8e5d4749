"""Advice for memory that runs out: one sentence in place of torch's or Python's traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from recon_ray.config.sections.training import TrainSection
from recon_ray.errors import OutOfMemoryError

#: Words in torch's message where it has no exception of its own for it.
_WORDS = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
#: Advice for an evaluation.
MEASURING = "lower eval.batch_size (zeroshot.batch_size, probe.batch_size) or cluster.workers"


def training_advice(train: TrainSection, *, world_size: int) -> str:
    """Return advice for a training."""
    most = -(-train.global_batch_size // world_size)
    size = min(train.micro_batch_size or most, most)
    first = (
        ""
        if train.activation_checkpointing
        else "continue it with train.activation_checkpointing=true (slower), or "
    )
    lower = f"lower train.micro_batch_size to {max(size // 2, 1)} (a worker holds {size} samples)"
    return (
        f"{first}{lower}, in evaluations eval.batch_size, set data.residency=host or "
        "data.mode=stream, or give every worker more memory; these under another run.name, as a "
        "run keeps its options (--dry-run measures a step)"
    )


@contextmanager
def translate_oom(device: torch.device, advice: str) -> Iterator[None]:
    """Translate every out-of-memory exception into one sentence, with advice on options.

    Raises:
        OutOfMemoryError: If memory runs out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(word in str(error) for word in _WORDS):
            raise
        on_host = isinstance(error, MemoryError) or "CPUAllocator" in str(error)
        whose = "memory" if on_host or device.type != "cuda" else "the GPU's memory"
        raise OutOfMemoryError(f"{whose} is exhausted ({_reason(error)}); {advice}") from error


def _reason(error: Exception) -> str:
    """Return the sentence of the message that has the size of the allocation."""
    first = (str(error).strip().splitlines() or [""])[0]
    sentences = [part for part in first.split(". ") if "allocate" in part]
    return (sentences or [first or type(error).__name__])[0].rstrip(".")
