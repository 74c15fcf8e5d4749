"""Text features of every category, computed once before training.

A bank lies on every device. More captions than :data:`LARGEST_BANK` are cached a shape instead,
beside the shards, and are read with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recon_ray.teachers.prompts import prompts
from recon_ray.teachers.protocol import TextTeacher

#: Texts of a bank: 200 MB of features that are 512 wide.
LARGEST_BANK = 100_000


def text_bank(
    teacher: TextTeacher, texts: Sequence[str], *, use_prompts: bool = True, batch_size: int = 256
) -> Tensor:
    """Encode category names, in all their prompts, with a frozen text teacher.

    The teacher never changes, so picking a random row of this bank in each training step is exactly
    what the reference computes by running its text encoder in every step; the zero-shot classifier
    of a category is the sum of its rows.

    Args:
        teacher: The text teacher.
        texts: C category names or captions.
        use_prompts: Put each into the 60 prompts; otherwise encode it as it is.
        batch_size: Sentences per forward pass.

    Returns:
        (C, 60, dim) float32 on the CPU, or (C, 1, dim) without prompts; not normalized.

    Raises:
        ValueError: If there is no text or the batch size is not positive.
    """
    if not texts:
        raise ValueError("texts is empty: give at least one category name.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: give at least 1.")
    sentences = [s for text in texts for s in (prompts(text) if use_prompts else [text])]
    # Equal sentences (a name that occurs twice) are encoded once.
    unique = list(dict.fromkeys(sentences))
    position = {sentence: row for row, sentence in enumerate(unique)}
    batches = [
        teacher.encode(unique[start : start + batch_size]).cpu()
        for start in range(0, len(unique), batch_size)
    ]
    rows = torch.tensor([position[sentence] for sentence in sentences])
    return torch.cat(batches)[rows].reshape(len(texts), -1, teacher.dim)
