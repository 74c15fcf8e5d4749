"""Probes on frozen features: linear SVM, nearest neighbors, logistic regression."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon_ray.protocols import SOUND, ProtocolFlags
from recon_ray.tasks.feature_extraction import (
    FrozenEvaluation,
    Tally,
    load_embedder,
    see_clouds,
    without_last_batch,
)
from recon_ray.tasks.linear_probe.config import ProbeSection
from recon_ray.train.runtime import EvaluationRuntime

#: C of the published linear SVM evaluation.
PAPER_C = 0.075
#: Shapes of a batch of its extraction, which drops an incomplete last one of training shapes.
REFERENCE_BATCH = 128
#: Inverse regularizations of the logistic regression.
LOGISTIC_C = (0.001, 0.01, 0.1, 1.0, 10.0)
#: Part of the training features on which it is chosen.
HELD_OUT = 0.2


def svm_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    c: float = PAPER_C,
    dual: bool = False,
) -> float:
    """Return the test accuracy of a linear SVM on unscaled features (published protocol).

    Args:
        train: (B, D) training features.
        train_labels: (B,) their classes, at least two different ones.
        test: (T, D) test features.
        test_labels: (T,) their classes.
        c: Inverse regularization.
        dual: Solve the dual problem, which was scikit-learn's default when the numbers
            were published, even where it is slower and stops before it converges. Otherwise
            scikit-learn chooses.
    """
    from sklearn.svm import LinearSVC  # 100 MB that other ranks do not need

    model = LinearSVC(C=c, dual=True if dual else "auto", random_state=0)
    with warnings.catch_warnings():
        # Both stop at the default number of iterations, converged or not, and a set of captioned
        # shapes may have nearly as many classes as samples.
        warnings.simplefilter("ignore")
        model.fit(train, train_labels)
    return float(np.mean(model.predict(test) == test_labels))


def few_label_accuracy(
    *data: np.ndarray,
    shots: int,
    draws: int,
    seed: int,
    c: float = PAPER_C,
) -> float:
    """Return the mean accuracy of linear SVMs over draws of few labels a class."""
    train, train_labels, test, test_labels = data
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
    train: np.ndarray, train_labels: np.ndarray, queries: np.ndarray | None, ks: Sequence[int]
) -> dict[int, np.ndarray]:
    """Predict the most frequent class among the k training features of largest cosine.

    A tie goes to the class whose tied neighbors are the more similar, then to the lowest.

    Args:
        train: (B, D) training features.
        train_labels: (B,) their classes.
        queries: (T, D) features; None for the training features without themselves.
        ks: Numbers of neighbors, at most B (B - 1 without the query itself).

    Returns:
        For each k (T,) classes.
    """
    from sklearn.neighbors import NearestNeighbors
    from sklearn.utils.extmath import weighted_mode

    search = NearestNeighbors(n_neighbors=max(ks), metric="cosine").fit(train)
    distances, rows = search.kneighbors(queries)
    found = {}
    for k in ks:
        # A distance is at most 2, so that k of them, shrunk, never outweigh one vote.
        votes = 1 + (2 - distances[:, :k].astype(np.float64)) / (4 * k)
        found[k] = weighted_mode(train_labels[rows[:, :k]], votes, axis=1)[0][:, 0]
    return found


def choose_k(train: np.ndarray, train_labels: np.ndarray, ks: Sequence[int]) -> int:
    """Choose the k that classifies most training features right by their neighbors."""
    usable = [k for k in ks if k < len(train)] or [min(ks)]
    if len(usable) == 1:
        return usable[0]
    found = nearest_neighbors(train, train_labels, None, usable)
    return max(usable, key=lambda k: int((found[k] == train_labels).sum()))


def logistic_accuracy(
    *data: np.ndarray,
    seed: int = 0,
    grid: Sequence[float] = LOGISTIC_C,
) -> float:
    """Return the test accuracy of a logistic regression on standardized features.

    The regularization is chosen on a fifth of the training features, held out class by class; the
    model is then fitted to all of them.

    Args:
        data: As :func:`svm_accuracy` takes it.
        seed: Seed of the choice of the held-out part.
        grid: Inverse regularizations that are tried.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, PredefinedSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, train_labels, test, test_labels = data
    middle = grid[len(grid) // 2]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=middle, max_iter=200))
    held = held_out(train_labels, seed=seed)
    if held.any() and len(np.unique(train_labels[~held])) > 1:
        split = PredefinedSplit(np.where(held, 0, -1))
        model = GridSearchCV(model, {"logisticregression__C": grid}, cv=split)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps that ran out: the last ones change little
        model.fit(train, train_labels)
    return float(model.score(test, test_labels))


def held_out(labels: np.ndarray, *, seed: int, fraction: float = HELD_OUT) -> np.ndarray:
    """Choose a part of every class at random, rounded down: (B,) bool."""
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = np.random.default_rng([seed, int(label)]).permutation(rows)
        held[rows[: int(fraction * len(rows))]] = True
    return held


# -- The job -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ProbeEvaluation(FrozenEvaluation):
    """Probes of the features of weights, and of an untrained network.

    Attributes:
        options: Probes and splits.
        num_classes: Classes of the set.
        flags: Published habits that are repeated.
        seed: Seed of the untrained network and of the probes' draws.
    """

    options: ProbeSection
    num_classes: int
    flags: ProtocolFlags = SOUND
    seed: int = 0

    def run(self, runtime: EvaluationRuntime) -> dict[str, Any]:
        """Extract features once; rank 0 fits the probes and returns their accuracies."""
        options, tally = self.options, Tally()
        models = {"": load_embedder(self.weights, **self.sizes)}
        if options.untrained:
            torch.manual_seed(self.seed)  # every worker draws the same network
            untrained = load_embedder(
                self.weights,
                trained=False,
                torch_init=self.flags.torch_init,
                **self.sizes,
            )
            if not self.flags.keeps_initial_statistics:
                see_clouds(untrained, runtime, options.train_split, self.choice, self.batch_size)
            models["_untrained"] = untrained
        place = partial(runtime.inference.place, device=runtime.device)
        models = {name: place(model) for name, model in models.items()}

        def encode(points: Tensor) -> dict[str, Tensor]:
            return {f"svm{name}": model.svm_features(points) for name, model in models.items()}

        count = len(models)
        train, test = (
            self.extract(encode, runtime, split, tally=tally, encodings=count)
            for split in (options.train_split, options.test_split)
        )
        if self.flags.drops_last_batch:
            train = without_last_batch(train, REFERENCE_BATCH, seed=self.seed)
        metrics: dict[str, float] = {"chance": 1 / self.num_classes}
        for name in models if runtime.rank == 0 else ():
            data = (train[f"svm{name}"], train["label"], test[f"svm{name}"], test["label"])
            found = probe_accuracies(
                *data,
                options=options,
                seed=self.seed,
                dual=self.flags.dual_svm,
            )
            metrics |= {f"{probe}{name}": value for probe, value in found.items()}
        counts = {"probe_train": len(train["label"]), "probe_test": len(test["label"])}
        return {"metrics": metrics, "counts": {**tally.counts(), **counts}}


def probe_accuracies(
    *data: np.ndarray,
    options: ProbeSection,
    seed: int = 0,
    dual: bool = False,
) -> dict[str, float]:
    """Return the test accuracies of all probes.

    Args:
        data: As :func:`svm_accuracy` takes it.
        options: Probes.
        seed: Seed of their draws.
        dual: Solve the dual problem of the linear SVM on all labels, as published.

    Returns:
        ``accuracy`` of the linear SVM, ``knn_accuracy`` with the chosen ``knn_k``, one
        ``knn<k>_accuracy`` for each k, and as configured ``logistic_accuracy`` and
        ``few_label_accuracy``.
    """
    train, train_labels, test, test_labels = data
    svm = svm_accuracy(*data, c=options.svm_c, dual=dual)
    found = {"accuracy": svm}
    classes = nearest_neighbors(train, train_labels, test, options.knn)
    neighbors = {k: float(np.mean(found == test_labels)) for k, found in classes.items()}
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
