"""Confusion matrix and the accuracies that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pairs of a true and a predicted class, by scikit-learn.

    Args:
        labels: (B,) true classes, below C.
        predicted: (B,) predicted classes, below C.
        num_classes: C.

    Returns:
        (C, C) int64: rows are true classes, columns predicted ones.
    """
    from sklearn.metrics import confusion_matrix as count_pairs

    if not len(labels):  # which scikit-learn refuses
        return np.zeros((num_classes, num_classes), np.int64)
    return count_pairs(labels, predicted, labels=np.arange(num_classes))


def overall_accuracy(matrix: np.ndarray) -> float:
    """Return the part of all samples that are predicted rightly; NaN without samples."""
    total = int(matrix.sum())
    return float(np.trace(matrix) / total) if total else float("nan")


def per_class(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return ``accuracy`` (None for a class without samples) and ``count`` of every class."""
    counts, right = matrix.sum(axis=1), np.diag(matrix)
    return {
        name: {"accuracy": float(right[i] / n) if n else None, "count": int(n)}
        for i, (name, n) in enumerate(zip(classes, counts, strict=True))
    }


def class_accuracy(matrix: np.ndarray) -> float:
    """Return the mean accuracy of the classes that occur; NaN where none does."""
    counts = matrix.sum(axis=1)
    present = counts > 0
    return float((np.diag(matrix)[present] / counts[present]).mean()) if present.any() else np.nan


def confusion_records(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Return the records of ``result.json`` on the classes."""
    return {
        "per_class": per_class(matrix, classes),
        "class_accuracy": class_accuracy(matrix),
        "confusion": matrix.tolist(),
    }


def class_lines(matrix: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return the accuracy of every class as lines of a table; ``-`` for one without samples."""
    lines = [f"{'overall':28}{overall_accuracy(matrix):>12.1%}{int(matrix.sum()):>8}"]
    for name, row in per_class(matrix, classes).items():
        shown = "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        lines.append(f"{name:28}{shown:>12}{row['count']:>8}")
    return lines
