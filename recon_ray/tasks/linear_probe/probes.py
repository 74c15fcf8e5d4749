"""Probes on frozen features: linear SVM, nearest neighbors, logistic regression."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recon_ray.tasks.feature_extraction import (
    PointChoice,
    Tally,
    extract_features,
    load_embedder,
    without_last_batch,
)
from recon_ray.tasks.linear_probe.config import ProbeSection
from recon_ray.train.runtime import EvaluationRuntime

#: C of the published linear SVM evaluation.
PAPER_C = 0.075
#: Shapes of a batch of its extraction, which leaves out an incomplete last one of training shapes.
REFERENCE_BATCH = 128
#: Inverse regularizations that the logistic regression chooses from.
LOGISTIC_C = (0.001, 0.01, 0.1, 1.0, 10.0)
#: Part of the training features on which it chooses.
HELD_OUT = 0.2
#: Queries that nearest neighbors compares at once.
QUERIES = 1024


def svm_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    c: float = PAPER_C,
    follows_reference: bool = False,
) -> float:
    """Test accuracy of a linear SVM on unscaled features (published protocol).

    Args:
        train: (B, D) training features.
        train_labels: (B,) their classes, at least two different ones.
        test: (T, D) test features.
        test_labels: (T,) their classes.
        c: Inverse regularization.
        follows_reference: Solve the dual problem, which was scikit-learn's default when the numbers
            were published, even where it is slower and stops before it converges. Otherwise
            scikit-learn chooses.
    """
    from sklearn.svm import LinearSVC  # 100 MB that other ranks do not need

    model = LinearSVC(C=c, dual=True if follows_reference else "auto", random_state=0)
    with warnings.catch_warnings():
        # Both stop at the default number of iterations, converged or not, and a set of captioned
        # shapes may have nearly as many classes as samples.
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


def nearest_neighbors(
    train: np.ndarray,
    train_labels: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    leave_out_self: bool = False,
) -> np.ndarray:
    """Most frequent class among the k training features of largest cosine.

    A tie goes to the class whose tied neighbors are the more similar, then to the lowest.

    Args:
        train: (B, D) training features.
        train_labels: (B,) their classes.
        queries: (T, D) features.
        k: Neighbors, at most B (B - 1 without the query itself).
        leave_out_self: The queries are the training features, none of which counts for itself.

    Returns:
        (T,) int64 classes.
    """
    known = F.normalize(torch.from_numpy(train).float(), dim=1)
    labels = torch.from_numpy(train_labels).long()
    predicted = []
    for start in range(0, len(queries), QUERIES):
        part = F.normalize(torch.from_numpy(queries[start : start + QUERIES]).float(), dim=1)
        cosine = part @ known.T
        if leave_out_self:
            own = torch.arange(len(part))
            cosine[own, start + own] = -torch.inf
        nearest, rows = cosine.topk(k, dim=1)
        votes = torch.zeros(len(part), int(labels.max()) + 1, dtype=torch.float64)
        # A similarity is at most 1, so that k of them, shrunk, never outweigh one vote.
        votes.scatter_add_(1, labels[rows], 1 + (nearest.double() + 1) / (4 * k))
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted).numpy()


def neighbor_accuracies(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    ks: Sequence[int],
) -> dict[int, float]:
    """Test accuracy of nearest neighbors for each k; arguments as :func:`svm_accuracy`."""
    return {
        k: float(np.mean(nearest_neighbors(train, train_labels, test, k) == test_labels))
        for k in ks
    }


def choose_k(train: np.ndarray, train_labels: np.ndarray, ks: Sequence[int]) -> int:
    """The k that classifies most training features right by their neighbors; nothing is tested.

    Args:
        train: (B, D) training features.
        train_labels: (B,) their classes.
        ks: What is chosen from; the first of the best.
    """
    usable = [k for k in ks if k < len(train)] or [min(ks)]
    if len(usable) == 1:
        return usable[0]

    def right(k: int) -> int:
        found = nearest_neighbors(train, train_labels, train, k, leave_out_self=True)
        return int((found == train_labels).sum())

    return max(usable, key=right)


def logistic_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    seed: int = 0,
    grid: Sequence[float] = LOGISTIC_C,
) -> float:
    """Test accuracy of a logistic regression on standardized features.

    The regularization is chosen on a fifth of the training features, held out class by class; the
    model is then fitted to all of them.

    Args:
        train: (B, D) training features.
        train_labels: (B,) their classes, at least two different ones.
        test: (T, D) test features.
        test_labels: (T,) their classes.
        seed: Seed of the choice of the held-out part.
        grid: Inverse regularizations that are tried.
    """
    held = held_out(train_labels, seed=seed)
    c = grid[len(grid) // 2]
    if held.any() and len(np.unique(train_labels[~held])) > 1:
        fitting = (train[~held], train_labels[~held], train[held], train_labels[held])
        c = max(grid, key=lambda c: _logistic(*fitting, c=c))
    return _logistic(train, train_labels, test, test_labels, c=c)


def held_out(labels: np.ndarray, *, seed: int, fraction: float = HELD_OUT) -> np.ndarray:
    """Choose a part of every class at random, rounded down: (B,) bool."""
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.random.default_rng([seed, int(label)]).permutation(
            np.flatnonzero(labels == label)
        )
        held[rows[: int(fraction * len(rows))]] = True
    return held


def _logistic(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    c: float,
) -> float:
    from sklearn.linear_model import LogisticRegression

    mean, deviation = train.mean(axis=0), train.std(axis=0)
    scale = np.where(deviation > 0, deviation, 1.0)
    model = LogisticRegression(C=c, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps that ran out: the last ones change little
        model.fit((train - mean) / scale, train_labels)
    return float(np.mean(model.predict((test - mean) / scale) == test_labels))


# -- The job -------------------------------------------------------------------------------------


class ProbeEvaluation:
    """Probes the features of weights, and of an untrained network beside them.

    Args:
        weights: Run, checkpoint or file with an encoder.
        sizes: Constructor arguments that the shapes in a foreign file do not show.
        options: Which probes, on which splits.
        choice: Which points are read.
        num_classes: Classes of the set.
        follows_reference: Leave out training shapes that fill no last batch, and draw the untrained
            network and solve the SVM as published.
        seed: Seed of the untrained network and of the probes' draws.
        limit: Use the first shapes of a split only.
    """

    def __init__(
        self,
        weights: str,
        sizes: Mapping[str, Any],
        *,
        options: ProbeSection,
        choice: PointChoice,
        num_classes: int,
        follows_reference: bool = False,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        self.weights, self.sizes = weights, dict(sizes)
        self.options, self.choice, self.num_classes = options, choice, num_classes
        self.follows_reference, self.seed, self.limit = follows_reference, seed, limit

    def run(self, runtime: EvaluationRuntime) -> dict[str, Any]:
        """Extract features once; rank 0 fits the probes and gives their accuracies."""
        options, tally = self.options, Tally()
        models = {"": load_embedder(self.weights, **self.sizes)}
        if options.untrained:
            torch.manual_seed(self.seed)  # every worker draws the same network
            models["_untrained"] = load_embedder(
                self.weights,
                trained=False,
                follows_reference=self.follows_reference,
                **self.sizes,
            )
        place = partial(runtime.inference.place, device=runtime.device)
        models = {name: place(model) for name, model in models.items()}

        def encode(points: Tensor) -> dict[str, Tensor]:
            return {f"svm{name}": model.svm_features(points) for name, model in models.items()}

        train, test = (
            extract_features(
                encode,
                runtime,
                split,
                self.choice,
                batch_size=options.batch_size,
                limit=self.limit,
                tally=tally,
                encodings=len(models),
            )
            for split in (options.train_split, options.test_split)
        )
        if self.follows_reference:
            train = without_last_batch(train, REFERENCE_BATCH, seed=self.seed)
        metrics: dict[str, float] = {"chance": 1 / self.num_classes}
        for name in models if runtime.rank == 0 else ():
            data = (train[f"svm{name}"], train["label"], test[f"svm{name}"], test["label"])
            found = probe_accuracies(
                *data,
                options=options,
                seed=self.seed,
                follows_reference=self.follows_reference,
            )
            metrics |= {f"{probe}{name}": value for probe, value in found.items()}
        counts = {"probe_train": len(train["label"]), "probe_test": len(test["label"])}
        return {"metrics": metrics, "counts": {**tally.counts(), **counts}}


def probe_accuracies(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    options: ProbeSection,
    seed: int = 0,
    follows_reference: bool = False,
) -> dict[str, float]:
    """Test accuracies of all probes; data as :func:`svm_accuracy`.

    Args:
        train: (B, D) training features.
        train_labels: (B,) their classes.
        test: (T, D) test features.
        test_labels: (T,) their classes.
        options: Which probes.
        seed: Seed of their draws.
        follows_reference: Solve the linear SVM on all labels as published.

    Returns:
        ``accuracy`` of the linear SVM, ``knn_accuracy`` with the chosen ``knn_k``, one
        ``knn<k>_accuracy`` for each k, and as asked for ``logistic_accuracy`` and
        ``few_label_accuracy``.
    """
    data = (train, train_labels, test, test_labels)
    follows = follows_reference
    found = {"accuracy": svm_accuracy(*data, c=options.svm_c, follows_reference=follows)}
    neighbors = neighbor_accuracies(*data, options.knn)
    chosen = choose_k(train, train_labels, options.knn)
    found |= {"knn_accuracy": neighbors[chosen], "knn_k": float(chosen)}
    found |= {f"knn{k}_accuracy": value for k, value in neighbors.items()}
    if options.logistic:
        found["logistic_accuracy"] = logistic_accuracy(*data, seed=seed)
    if options.shots:
        found["few_label_accuracy"] = few_label_accuracy(
            *data, shots=options.shots, draws=options.draws, seed=seed, c=options.svm_c
        )
    return found
