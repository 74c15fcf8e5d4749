"""Which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pairs of a true and a predicted class.

    Args:
        labels: (B,) true classes, below C.
        predicted: (B,) predicted classes, below C.
        num_classes: C.

    Returns:
        (C, C) int64: rows are true classes, columns predicted ones.
    """
    pairs = labels.astype(np.int64) * num_classes + predicted
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def overall_accuracy(matrix: np.ndarray) -> float:
    """Part of all samples that are predicted rightly; NaN where there are none."""
    total = int(matrix.sum())
    return float(np.trace(matrix) / total) if total else float("nan")


def class_accuracy(matrix: np.ndarray) -> float:
    """Mean over the classes that occur of the part of their samples predicted rightly."""
    counts = matrix.sum(axis=1)
    present = counts > 0
    if not present.any():
        return float("nan")
    return float((np.diag(matrix)[present] / counts[present]).mean())


def per_class(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Accuracy and number of samples of every class, for ``result.json``.

    Args:
        matrix: (C, C) of :func:`confusion_matrix`.
        classes: C names.

    Returns:
        Class name to ``accuracy`` (None for a class that does not occur) and ``count``.
    """
    counts = matrix.sum(axis=1)
    return {
        name: {
            "accuracy": float(matrix[i, i] / counts[i]) if counts[i] else None,
            "count": int(counts[i]),
        }
        for i, name in enumerate(classes)
    }
