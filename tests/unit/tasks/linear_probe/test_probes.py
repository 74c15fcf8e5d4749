import numpy as np
import pytest
import torch
from sklearn import svm

from recon_ray.tasks.linear_probe.config import ProbeSection
from recon_ray.tasks.linear_probe.probes import few_label_accuracy, probe_accuracies, svm_accuracy
from recon_ray.tasks.zeroshot.evaluation import accuracy, class_vectors, zeroshot_predictions


def _clusters(per_class: int, classes: int, spread: float, seed: int):
    random = np.random.default_rng(seed)
    centers = np.eye(classes, 8) * 4
    labels = np.repeat(np.arange(classes), per_class)
    return centers[labels] + spread * random.standard_normal((len(labels), 8)), labels


def test_separable_features_are_classified_without_error():
    train, train_labels = _clusters(10, 4, 0.1, 0)
    test, test_labels = _clusters(5, 4, 0.1, 1)
    assert svm_accuracy(train, train_labels, test, test_labels) == 1.0


def test_shuffled_labels_are_classified_at_chance():
    train, train_labels = _clusters(50, 4, 0.1, 0)
    test, test_labels = _clusters(50, 4, 0.1, 1)
    shuffled = np.random.default_rng(2).permutation(train_labels)
    assert svm_accuracy(train, shuffled, test, test_labels) < 0.6


def test_only_the_reference_solves_the_dual_problem(monkeypatch):
    """As scikit-learn did by default; the few-label probe is not a published one."""
    solved, original = [], svm.LinearSVC.fit
    monkeypatch.setattr(
        svm.LinearSVC, "fit", lambda self, *data: solved.append(self.dual) or original(self, *data)
    )
    train, labels = _clusters(10, 3, 0.1, 0)
    options = ProbeSection(knn=(1,), logistic=False, shots=2, draws=1)
    for dual in (True, False):
        probe_accuracies(train, labels, train, labels, options=options, dual=dual)
    assert solved == [True, "auto", "auto", "auto"]


def test_few_labels_give_the_mean_over_draws_and_are_repeatable():
    train, train_labels = _clusters(20, 4, 1.8, 0)
    test, test_labels = _clusters(50, 4, 1.8, 1)
    data = (train, train_labels, test, test_labels)
    five = few_label_accuracy(*data, shots=5, draws=4, seed=0)
    assert five == few_label_accuracy(*data, shots=5, draws=4, seed=0)
    assert five != few_label_accuracy(*data, shots=5, draws=4, seed=1)
    one = few_label_accuracy(*data, shots=1, draws=8, seed=0)
    assert one < five <= 1


def test_more_shots_than_samples_use_all_of_them():
    train, train_labels = _clusters(3, 4, 0.5, 0)
    data = (train, train_labels, *_clusters(20, 4, 0.5, 1))
    few = few_label_accuracy(*data, shots=99, draws=2, seed=0)
    assert few == pytest.approx(svm_accuracy(*data), abs=0.05)


def test_a_class_vector_is_the_sum_of_raw_prompt_features():
    bank = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[1.0, 0.0], [1.0, 0.0]]])
    vectors = class_vectors(bank)
    assert torch.allclose(vectors, torch.tensor([[0.6, 0.8], [1.0, 0.0]]))


def test_predictions_follow_the_cosine_not_the_length():
    vectors = class_vectors(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
    features = torch.tensor([[100.0, 1.0], [0.001, 0.002], [1.0, 1.0]])
    predictions = zeroshot_predictions(features, vectors)
    assert predictions.tolist() == [0, 1, 0]  # the lowest class on a tie
    assert accuracy(predictions, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)
