"""Linear probes on frozen features."""

from __future__ import annotations

import warnings

import numpy as np

#: C of the published linear SVM evaluation.
PAPER_C = 0.075


def svm_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    c: float = PAPER_C,
) -> float:
    """Test accuracy of a linear SVM on unscaled features (published protocol).

    Args:
        train: (B, D) training features.
        train_labels: (B,) their classes, at least two different ones.
        test: (T, D) test features.
        test_labels: (T,) their classes.
        c: Inverse regularization.
    """
    from sklearn.svm import LinearSVC  # 100 MB that other ranks do not need

    model = LinearSVC(C=c, random_state=0)
    with warnings.catch_warnings():
        # The published protocol stops at the default number of iterations, converged or not, and
        # a set of captioned shapes may have nearly as many classes as samples.
        warnings.simplefilter("ignore")
        model.fit(train, train_labels)
    return float(np.mean(model.predict(test) == test_labels))


def few_label_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    shots: int,
    draws: int,
    seed: int,
    c: float = PAPER_C,
) -> float:
    """Mean test accuracy of linear SVMs that see ``shots`` labels a class.

    Args:
        train: (B, D) training features.
        train_labels: (B,) their classes.
        test: (T, D) test features.
        test_labels: (T,) their classes.
        shots: Labels a class; a class with fewer gives all it has.
        draws: Random draws that are averaged.
        seed: Seed of the draws.
        c: Inverse regularization.
    """
    accuracies = []
    for draw in range(draws):
        random = np.random.default_rng([seed, draw])
        chosen = np.concatenate(
            [
                random.permutation(np.flatnonzero(train_labels == label))[:shots]
                for label in np.unique(train_labels)
            ]
        )
        accuracies.append(svm_accuracy(train[chosen], train_labels[chosen], test, test_labels, c=c))
    return float(np.mean(accuracies))
