"""Checks of weights, points and labels that several tasks share, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import ConfigError
from recon_ray.models.cloud import CloudModel
from recon_ray.points.transforms import CANDIDATE_POINTS
from recon_ray.runs.storage import absolute
from recon_ray.tasks.classify.task import CLASSIFIERS
from recon_ray.tasks.config_checks import texts_of
from recon_ray.tasks.linear_probe.probes import REFERENCE_BATCH
from recon_ray.weights.catalog import CATALOG, find_published
from recon_ray.weights.find import find_weights
from recon_ray.weights.weight_files import LoadedWeights

#: Texts of the published prompts that its dataset cards correct: set, class, published text.
REFERENCE_TEXTS = (("scanobjectnn", "toilet", "toile"),)


def load_start(spec: str | None, **sizes: Any) -> tuple[str | None, LoadedWeights | None]:  # noqa: ANN401
    """Read the weights that ``init_from`` names.

    Args:
        spec: The option; None for none.
        sizes: Constructor arguments that the shapes in a file do not show.

    Returns:
        The absolute place of the weights, and the weights.

    Raises:
        CheckpointError: If there are none, or they cannot be read.
    """
    if spec is None:
        return None, None
    published = spec in CATALOG and not Path(spec).exists()
    known = {**CATALOG[spec].sizes, **_given(sizes)} if published else sizes
    place = str(find_published(spec)) if published else spec
    weights = find_weights(place, **known)
    return absolute(place), weights


def check_points(prepared: PreparedSet, num_points: int, *, published: bool = False) -> None:
    """Refuse more points than are stored, and a number that the published rule does not have.

    Raises:
        ConfigError: Naming the option.
    """
    if num_points > prepared.num_points:
        raise ConfigError(
            f"data.num_points={num_points}: {prepared.path} holds {prepared.num_points} points a "
            "shape; lower it, or prepare the set again with a larger prepare.num_points"
        )
    if published and num_points not in CANDIDATE_POINTS:
        known = ", ".join(map(str, CANDIDATE_POINTS))
        raise ConfigError(
            f"data.num_points={num_points}: protocol=reference samples {known} points; choose one "
            "of them, or protocol=sound"
        )


def check_patches(num_points: int, model: CloudModel) -> None:
    """Refuse fewer points than the model cuts its patches of.

    Raises:
        ConfigError: Naming the option.
    """
    needed = max(model.num_groups, model.group_size)
    if num_points < needed:
        raise ConfigError(
            f"data.num_points={num_points} is too few for the model's {model.num_groups} patches "
            f"of {model.group_size} points; give {needed} or more"
        )


def check_batch(prepared: PreparedSet, split: str, labeled: int) -> int:
    """Count the shapes that the published extraction of training features keeps: whole batches.

    Args:
        prepared: The set.
        split: Its training split.
        labeled: Labeled shapes that are read of it.

    Raises:
        ConfigError: If there are none.
    """
    if labeled < REFERENCE_BATCH:
        raise ConfigError(
            f"protocol=reference leaves out what does not fill a batch of {REFERENCE_BATCH}: all "
            f"{labeled} shapes of {split!r} in {prepared.path}; set protocol=sound"
        )
    return labeled - labeled % REFERENCE_BATCH


def class_texts(prepared: PreparedSet, *, published: bool) -> dict[str, str]:
    """Return the text of each class for zero-shot prompts: the card's, misspelt as published.

    Args:
        prepared: The set.
        published: Repeat the published misspellings.
    """
    texts = dict(zip(prepared.classes, texts_of(prepared, "category"), strict=True))
    name = str((prepared.manifest.get("card") or {}).get("name", ""))
    for start, label, text in REFERENCE_TEXTS if published else ():
        if name.startswith(start) and label in texts:
            texts[label] = text
    return texts


def check_classes(prepared: PreparedSet) -> None:
    """Refuse a set without classes.

    Raises:
        ConfigError: If there are fewer than two.
    """
    if len(prepared.classes) < 2:
        raise ConfigError(
            f"data.path={prepared.path}: it has {len(prepared.classes)} classes, a classifier "
            "needs two or more; prepare the set again with a class for each shape"
        )


def check_labels(prepared: PreparedSet, key: str, split: str, num_classes: int) -> None:
    """Refuse a split that is absent or empty, or has labels that the head does not.

    Args:
        prepared: The set.
        key: The option that names the split.
        split: The split.
        num_classes: Outputs of the head.

    Raises:
        ConfigError: Naming the option.
    """
    path = prepared.path
    if split not in prepared.splits:
        raise ConfigError(
            f"{key}={split}: {path} has the splits {', '.join(prepared.splits)}; choose one of them"
        )
    labels = np.zeros(0, dtype=np.int64)
    if prepared.splits[split].rows:
        labels = prepared.read(split, columns=["label"])["label"].to_numpy()
    if not (labels >= 0).any():
        what = "no shape with a class" if len(labels) else "no shapes"
        raise ConfigError(f"{key}={split}: it has {what} in {path}; choose another split")
    if key == "data.train_splits" and (labels < 0).any():
        raise ConfigError(
            f"{key}: {int((labels < 0).sum())} of {len(labels)} shapes of {split!r} in {path} have "
            "no class; prepare the set again with a class for each"
        )
    highest = int(labels.max())
    if highest >= num_classes:
        raise ConfigError(
            f"{key}={split}: {path} has a shape of class {highest}, but the head has {num_classes} "
            f"outputs (0 to {num_classes - 1}); use the classifier of this set, or prepare the set "
            "again"
        )


def check_names(weights: LoadedWeights, prepared: PreparedSet) -> None:
    """Refuse a classifier of other classes than the set's.

    Raises:
        ConfigError: Naming the first class that differs, or the numbers.
    """
    if weights.kind not in CLASSIFIERS:
        raise ConfigError(
            f"init_from: {weights.source} holds the weights of a {weights.kind} model, which has "
            "no classes; give a classifier, which jobs/finetune.py makes of it"
        )
    theirs, ours = weights.extra.get("classes"), prepared.classes
    outputs = int(weights.architecture["num_classes"])
    if outputs != len(ours):
        raise ConfigError(
            f"init_from: {weights.source} has {outputs} classes, {prepared.path} has "
            f"{len(ours)}; give the classifier of this set"
        )
    if isinstance(theirs, list) and theirs != ours:
        at = next(i for i, pair in enumerate(zip(theirs, ours, strict=True)) if len({*pair}) > 1)
        raise ConfigError(
            f"init_from: class {at} of {weights.source} is {theirs[at]!r}, that of "
            f"{prepared.path} is {ours[at]!r}; give the classifier of this set"
        )


def describe_set(prepared: PreparedSet, split: str) -> str:
    """Return one line on the set and its card, for the log."""
    card = prepared.manifest.get("card")
    rows, name = prepared.splits[split].rows, "a set of your own"
    if card is not None:
        published = card.get("counts", {}).get(split)
        name = f"{card['title']}" + (f", {published:,} published" if published else "")
    return f"{prepared.path}: {rows:,} shapes in {split!r} ({name})"


def _given(sizes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sizes.items() if value is not None}
