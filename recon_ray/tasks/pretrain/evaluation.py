"""Evaluation of a pre-training before and after: probes and zero-shot accuracy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recon_ray.errors import ConfigError
from recon_ray.models.batch_norm import batch_norms
from recon_ray.models.cloud import svm_pool
from recon_ray.models.recon import Recon
from recon_ray.protocols import REFERENCE_SKIP
from recon_ray.tasks.feature_extraction import PointChoice, extract_features, see_clouds
from recon_ray.tasks.linear_probe.probes import few_label_accuracy, svm_accuracy
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.zeroshot.evaluation import accuracy, class_vectors, zeroshot_predictions
from recon_ray.train.runtime import EvaluationRuntime


def probe_student(
    model: Recon,
    runtime: EvaluationRuntime,
    config: PretrainConfig,
    *,
    bank: Tensor | None,
    num_classes: int,
    when: str,
) -> dict[str, float]:
    """Fit probes to frozen features, and classify by text, on the held-out split.

    Every sample is counted once, whatever the number of workers; rank 0 fits the probes.

    Args:
        model: The student.
        runtime: Splits and device; every rank calls this.
        config: The job's configuration.
        bank: (C, P, d) text features of the classes, None without a text teacher.
        num_classes: Labeled classes C.
        when: Names the metrics.

    Returns:
        On rank 0 ``probe_*``, ``probe_full_*``, ``zeroshot_*`` and ``chance``; else nothing.

    Raises:
        ConfigError: If there are too few labeled shapes for the probes.
    """
    options, train_split = config.eval, "+".join(config.data.train_splits)
    sees_clouds = when == "before" and not config.flags.keeps_initial_statistics
    if sees_clouds:
        see_clouds(model, runtime, train_split, _choice(config), options.batch_size)
    test = _features(model, runtime, config, options.split)
    train = _features(model, runtime, config, train_split)
    for _, layer in batch_norms(model) if sees_clouds else ():
        layer.reset()  # training begins as if nothing had been seen
    _check_labels(config, train["label"], test["label"])  # on every rank: none must wait for one
    if runtime.rank != 0:
        return {}
    metrics = {"chance": 1 / num_classes}
    if bank is not None:
        predicted = zeroshot_predictions(torch.from_numpy(test["text"]), class_vectors(bank))
        name = "zeroshot_before" if when == "before" else "zeroshot_accuracy"
        metrics[name] = accuracy(predicted, torch.from_numpy(test["label"]))
    data = (train["features"], train["label"], test["features"], test["label"])
    metrics[f"probe_{when}"] = few_label_accuracy(
        *data, shots=options.shots, draws=options.draws, seed=0, c=options.svm_c
    )
    metrics[f"probe_full_{when}"] = svm_accuracy(*data, c=options.svm_c)
    return metrics


def _features(
    model: Recon, runtime: EvaluationRuntime, config: PretrainConfig, split: str
) -> dict[str, np.ndarray]:
    """Features of all labeled rows of a split, in order of sample id, on every rank.

    The points of a sample are the same every time.
    """

    def encode(points: Tensor) -> dict[str, Tensor]:  # (B, N, 3)
        tokens = model.forward_features(points)  # (B, 3 + G, D)
        text = tokens[:, 2] if model.text_proj is None else model.project_text(tokens)  # (B, d)
        return {"features": svm_pool(tokens), "text": text}  # (B, 2 D), (B, d)

    size, limit = config.eval.batch_size, config.eval.limit
    return extract_features(encode, runtime, split, _choice(config), batch_size=size, limit=limit)


def _choice(config: PretrainConfig) -> PointChoice:
    return PointChoice(
        config.data.num_points,
        how="fps" if config.flags.fps_probe_points else "random",
        normalize="subset" if config.data.normalize else "none",
        min_sq_norm=REFERENCE_SKIP,
    )


def _check_labels(config: PretrainConfig, train: np.ndarray, test: np.ndarray) -> None:
    classes, options = len(np.unique(train)), config.eval
    if classes < 2 or len(test) == 0:
        limit = "null" if options.limit is None else options.limit
        raise ConfigError(
            f"eval.limit={limit}: that leaves {classes} classes of labeled shapes in 'train' "
            f"and {len(test)} shapes in {options.split!r}, but the probes need two classes to "
            "learn from and a shape to test on; raise it and data.limit, or set "
            "eval.enabled=false"
        )
