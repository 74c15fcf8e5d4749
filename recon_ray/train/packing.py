"""A checkpoint as bytes, before it is written, and which of the written ones are kept."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

FORMAT = 1


@dataclass(frozen=True)
class Packed:
    """A checkpoint as bytes, on its way to the storage.

    Attributes:
        name: Folder name, ``step-<number>``.
        files: File name to content.
        manifest: What ``MANIFEST.json`` says besides the files.
        best: What ``best.json`` is to say, None to leave it as it is.
    """

    name: str
    files: dict[str, bytes]
    manifest: dict[str, Any]
    best: dict[str, Any] | None


def pack(
    step: int,
    *,
    model: Mapping[str, torch.Tensor],
    train: Mapping[str, Any],
    architecture: Mapping[str, Any],
    records: Mapping[str, Any] | None = None,
    best: Mapping[str, Any] | None = None,
) -> Packed:
    """Make the files of a checkpoint in memory; what is packed may change afterwards.

    Args:
        step: Optimizer steps behind it.
        model: State dict of the model.
        train: What continues the run.
        architecture: Constructor arguments of the model.
        records: Plain data of the task that goes with the model.
        best: ``name``, ``metric``, ``value`` and ``epoch`` of the best validated checkpoint so far,
            which may be this one; it is never deleted.
    """
    files = {}
    for file, content in (("model.pt", dict(model)), ("train.pt", dict(train))):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        files[file] = buffer.getvalue()
    manifest = {
        "format": FORMAT,
        "step": step,
        "architecture": dict(architecture),
        "records": dict(records or {}),
    }
    name = f"step-{step:08d}"
    return Packed(name, files, manifest, None if best is None else dict(best))


def expendable(
    names: Sequence[str], *, keep: int, every: int | None, best: str | None
) -> list[str]:
    """Checkpoints that need not be kept: not among the last, not the best, not after n steps.

    Args:
        names: Folder names, oldest first.
        keep: How many of the last are kept.
        every: Those after every so many steps are kept, None for none.
        best: Folder name of the best one, None if none was chosen.
    """
    return [
        name
        for name in names[:-keep]
        if name != best and (every is None or int(name.removeprefix("step-")) % every)
    ]
