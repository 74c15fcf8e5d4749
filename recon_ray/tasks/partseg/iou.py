"""Intersection over union of parts, and the summaries that part segmentation is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PartTable:
    """Parts of every category.

    Attributes:
        categories: Names in label order.
        parts: Part numbers of each of them.
    """

    categories: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]

    @property
    def num_parts(self) -> int:
        """Number P of parts, absent numbers included."""
        return 1 + max((part for parts in self.parts for part in parts), default=-1)

    def allowed(self) -> Tensor:
        """(C, P) bool: true where a category has a part."""
        allowed = torch.zeros(len(self.parts), self.num_parts, dtype=torch.bool)
        for category, parts in enumerate(self.parts):
            allowed[category, list(parts)] = True
        return allowed


def predict_parts(log_probs: Tensor, allowed: Tensor) -> Tensor:
    """Most likely part of every point among those of its shape's category, the lowest on a tie.

    Args:
        log_probs: (B, N, P) scores.
        allowed: (B, P) bool: the parts of each shape's category.

    Returns:
        (B, N) int64.
    """
    return log_probs.masked_fill(~allowed[:, None], -torch.inf).argmax(dim=-1)


def count_parts(predicted: Tensor, target: Tensor, valid: Tensor, num_parts: int) -> Tensor:
    """Count the points of every part.

    Args:
        predicted: (B, N) int64 parts.
        target: (B, N) int64 parts.
        valid: (B, N) bool: the points that count.
        num_parts: P.

    Returns:
        (B, P, 3) int64: points where both agree on the part, predicted ones, true ones.
    """
    counts = torch.zeros(len(predicted), num_parts, 3, dtype=torch.int64, device=predicted.device)
    hit = valid & (predicted == target)
    for column, (parts, chosen) in enumerate(((target, hit), (predicted, valid), (target, valid))):
        counts[..., column].scatter_add_(1, parts, chosen.long())
    return counts


def shape_ious(counts: Tensor, allowed: Tensor) -> Tensor:
    """Mean IoU over the parts of a shape's category; a part in neither of the two counts 1.

    Args:
        counts: (B, P, 3) of :func:`count_parts`.
        allowed: (B, P) bool: the parts of each shape's category.

    Returns:
        (B,) float64.
    """
    both, predicted, true = counts.double().unbind(-1)
    union = predicted + true - both
    ious = torch.where(union > 0, both / union.clamp_min(1), 1.0)
    return (ious * allowed).sum(dim=1) / allowed.sum(dim=1)


@dataclass(frozen=True)
class PartScores:
    """Scores of the parts of a split.

    Attributes:
        instance_miou: Mean of the shapes' IoU.
        class_miou: Mean over the categories that occur of their shapes' mean IoU.
        accuracy: Points with the right part, of all.
        class_accuracy: Mean over the parts that occur of the right points among theirs.
        categories: Category to (shapes, mean IoU); the IoU is None where no shape occurs.
    """

    instance_miou: float
    class_miou: float
    accuracy: float
    class_accuracy: float
    categories: Mapping[str, tuple[int, float | None]]

    def metrics(self) -> dict[str, float]:
        """Return the four metrics by name."""
        return {
            "instance_miou": self.instance_miou,
            "class_miou": self.class_miou,
            "accuracy": self.accuracy,
            "class_average_accuracy": self.class_accuracy,
        }

    def record(self) -> dict[str, dict[str, float | int | None]]:
        """Return the categories as plain values; an absent one has the IoU null."""
        return {
            name: {"shapes": shapes, "miou": miou}
            for name, (shapes, miou) in self.categories.items()
        }


def summarize(
    ious: Tensor, labels: Tensor, part_counts: Tensor, categories: Sequence[str]
) -> PartScores:
    """Average over the shapes of a split.

    Args:
        ious: (B,) float64 of :func:`shape_ious`; at least one.
        labels: (B,) int64 categories.
        part_counts: (P, 3) the sum of :func:`count_parts` over the shapes.
        categories: Names in label order.
    """
    shapes = torch.bincount(labels, minlength=len(categories))
    sums = torch.zeros(len(categories), dtype=torch.float64).index_add_(0, labels, ious.double())
    means = {
        name: (int(count), float(total / count) if count else None)
        for name, count, total in zip(categories, shapes, sums, strict=True)
    }
    present = [miou for _, miou in means.values() if miou is not None]
    both, _, true = part_counts.double().unbind(-1)
    occurring = true > 0
    return PartScores(
        instance_miou=float(ious.mean()),
        class_miou=sum(present) / len(present),
        accuracy=float(both.sum() / true.sum()),
        class_accuracy=float((both[occurring] / true[occurring]).mean()),
        categories=means,
    )


def category_lines(record: Mapping[str, Mapping[str, float | int | None]]) -> list[str]:
    """Return a line for each of :meth:`PartScores.record`; "-" where no shape of it occurs."""
    lines = [f"{'category':16}{'shapes':>8}{'mIoU':>9}"]
    for name, scores in record.items():
        shown = "-" if scores["miou"] is None else f"{scores['miou']:.1%}"
        lines.append(f"{name:16}{scores['shapes'] or '-':>8}{shown:>9}")
    return lines
