"""Checks of options, prepared sets and weights, before anything is written or started."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from recon_ray.config.sections.common import JobConfig
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.models.cloud import CloudModel
from recon_ray.models.presets import MODELS, preset_sizes
from recon_ray.points import ops
from recon_ray.points.transforms import CANDIDATE_POINTS
from recon_ray.runs.checkpoint import check_model_state
from recon_ray.storage import Place
from recon_ray.tasks.classify.task import CLASSIFIERS
from recon_ray.tasks.linear_probe.probes import REFERENCE_BATCH
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.run import Run
from recon_ray.tasks.teacher_features import SOURCE
from recon_ray.teachers.bank import LARGEST_BANK
from recon_ray.weights.weight_files import LoadedWeights

#: Texts of the published prompts that its dataset cards correct: set, class, published text.
REFERENCE_TEXTS = (("scanobjectnn", "toilet", "toile"),)


def use_ops(config: JobConfig) -> None:
    """Set the configured point operations in this process, and log which they are.

    Raises:
        OpsError: If the configured ones are not installed.
    """
    ops.set_backend(config.runtime.ops_backend)
    ops.announce()


def check_here(config: JobConfig) -> None:
    """Refuse what this process cannot do where the job runs without Ray.

    Raises:
        ConfigError: If a GPU is configured and torch finds none.
    """
    if config.cluster.workers != 0 or config.runtime.device != "cuda":
        return
    if not torch.cuda.is_available():
        raise ConfigError(
            "runtime.device=cuda: torch finds no usable GPU in this process (cluster.workers=0); "
            "set runtime.device=auto"
        )


def find_set(
    key: str, path: str | os.PathLike[str] | Place, version: int | None = None
) -> PreparedSet:
    """Open a prepared set that an option names, on a disk or in an object store.

    Raises:
        ConfigError: If there is no such folder, or no store of that kind.
        DataError: If it is not a prepared set, or is incomplete or damaged.
    """
    try:
        is_there = (place := Place.of(path)).is_dir()
    except ConfigError as error:
        raise ConfigError(f"{key}={error}") from error
    if not is_there:
        raise ConfigError(
            f"{key}={path}: no such folder; give the folder of a prepared set, or make one with "
            "jobs/prepare.py"
        )
    return PreparedSet.open(place, version=version)


def check_split(prepared: PreparedSet, key: str, split: str, *, or_else: str = "") -> None:
    """Refuse a split that the set does not have.

    Raises:
        ConfigError: Naming the option and the splits.
    """
    if split not in prepared.splits:
        raise ConfigError(
            f"{key}={split}: {prepared.path} has the splits {', '.join(prepared.splits)}; choose "
            f"one of them{or_else}"
        )


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
    """Count the labeled training shapes that the published extraction keeps: whole batches.

    Raises:
        ConfigError: If they fill no batch.
    """
    if labeled < REFERENCE_BATCH:
        raise ConfigError(
            f"protocol=reference leaves out what does not fill a batch of {REFERENCE_BATCH}: all "
            f"{labeled} shapes of {split!r} in {prepared.path}; set protocol=sound"
        )
    return labeled - labeled % REFERENCE_BATCH


def class_texts(prepared: PreparedSet, *, published: bool) -> dict[str, str]:
    """Return the text of each class for zero-shot prompts: the card's, misspelt as published."""
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


def check_labels(
    prepared: PreparedSet, key: str, split: str, num_classes: int, *, needed: bool = True
) -> None:
    """Refuse a split, named by an option, that is absent or empty or has labels beyond the head.

    Args:
        prepared: The set.
        key: The option.
        split: The split.
        num_classes: Outputs of the head.
        needed: Refuse a split in which no shape has a class.

    Raises:
        ConfigError: Naming the option.
    """
    path = prepared.path
    check_split(prepared, key, split)
    labels = np.zeros(0, dtype=np.int64)
    if prepared.splits[split].rows:
        labels = prepared.read(split, columns=["label"])["label"].to_numpy()
    if needed and not (labels >= 0).any():
        what = "no shape with a class" if len(labels) else "no shapes"
        raise ConfigError(f"{key}={split}: it has {what} in {path}; choose another split")
    if key == "data.train_splits" and (labels < 0).any():
        raise ConfigError(
            f"{key}: {int((labels < 0).sum())} of {len(labels)} shapes of {split!r} in {path} have "
            "no class; prepare the set again with a class for each"
        )
    highest = int(labels.max(initial=-1))
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


def texts_of(prepared: PreparedSet, kind: Literal["category", "caption"]) -> list[str]:
    """Return the texts of a set for a text teacher: one a class, or every caption that occurs.

    A class is read as its dataset card spells it out, else by its name; blanks are no caption.
    """
    if kind == "caption":
        columns = [prepared.read(name, columns=["caption"])["caption"] for name in prepared.splits]
        return sorted({text for column in columns for text in column.to_pylist() if text.strip()})
    card = prepared.manifest.get("card") or {}
    spelled = dict(zip(card.get("classes", ()), card.get("texts", ()), strict=False))
    return [spelled.get(name, name) for name in prepared.classes]


def has_many_captions(prepared: PreparedSet) -> bool:
    """Return whether a set has more captions than a bank holds; it is read until that is clear."""
    found: set[str] = set()
    for split in prepared.splits.values():
        for part in prepared.parts(split, ["caption"]):
            found.update(part["caption"].unique().to_pylist())
            if len(found) > LARGEST_BANK:
                return True
    return False


def check_texts(prepared: PreparedSet, texts: Sequence[str]) -> None:
    """Refuse to run a text teacher without a text.

    Raises:
        ConfigError: Naming the options.
    """
    if not texts:
        raise ConfigError(
            f"teacher.text.name: {prepared.path} has no classes; set data.text=caption or "
            "teacher.text.name=null"
        )


def check_captions(
    prepared: PreparedSet, splits: Sequence[str], option: str, *, or_else: str
) -> None:
    """Refuse shapes without a caption, or with blanks for one: those are no text for a teacher.

    Args:
        prepared: The set.
        splits: Splits whose captions are encoded.
        option: Option and value that ask for captions.
        or_else: What else can be done.

    Raises:
        ConfigError: With their number, and the first.
    """
    total, lacking = 0, []
    for split in splits:
        rows = prepared.read(split, columns=["object_id", "caption"])
        pairs = zip(rows["object_id"].to_pylist(), rows["caption"].to_pylist(), strict=True)
        lacking += [name for name, text in pairs if not text.strip()]
        total += len(rows)
    if lacking:
        raise ConfigError(
            f"{option}: {len(lacking)} of {total} shapes of {' and '.join(splits)} in "
            f"{prepared.path} have no caption (first: {lacking[0]}); prepare the set again with a "
            f"caption for each, or {or_else}"
        )


def check_images(prepared: PreparedSet) -> None:
    """Refuse an image teacher without pictures; its weights need not be fetched to say so.

    Raises:
        ConfigError: Naming the option.
    """
    if not prepared.has_views:
        raise ConfigError(
            f"teacher.image.name: {prepared.path} holds no images; set teacher.image.name=null, "
            "or prepare the set again with prepare.views=4"
        )


def check_start(run: Run, make_model: Callable[[], nn.Module]) -> None:
    """Refuse a checkpoint to start from that the configured model cannot take.

    Raises:
        ConfigError: Naming the first thing that differs.
    """
    if run.start is None:
        return
    with torch.device("meta"):
        model = make_model()
    try:
        check_model_state(model, run.start.model, source=f"resume={run.resume}")
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def check_model(config: PretrainConfig) -> None:
    """Refuse sizes of the model that do not fit each other or the clouds.

    Raises:
        ConfigError: Naming the option.
    """
    kind, preset = config.model.kind, config.model.preset
    defaults = {p.name: p.default for p in inspect.signature(MODELS[kind]).parameters.values()}
    sizes = {**defaults, **preset_sizes(preset, kind), **config.model.overrides()}
    dim, heads, groups = sizes["embed_dim"], sizes["num_heads"], sizes["num_groups"]
    if dim % heads:
        divisors = [number for number in range(1, dim + 1) if dim % number == 0]
        nearest = min(divisors, key=lambda number: abs(number - heads))
        raise ConfigError(
            f"model.num_heads={heads} does not divide model.embed_dim={dim}; choose a divisor, "
            f"{nearest} for example"
        )
    for name in ("num_groups", "group_size"):
        if sizes[name] > config.data.num_points:
            raise ConfigError(
                f"model.{name}={sizes[name]} is more than data.num_points={config.data.num_points};"
                " lower it, or draw more points"
            )
    if groups < 2:
        raise ConfigError(
            f"model.num_groups={groups}: one patch has to be hidden and one seen; give 2 or more"
        )
    ratio = sizes["mask_ratio"]
    if int(ratio * groups) == 0:
        raise ConfigError(
            f"model.mask_ratio={ratio:g} hides none of model.num_groups={groups} patches; give "
            f"{math.ceil(1000 / groups) / 1000:g} or more"
        )


def check_evaluated_split(config: PretrainConfig, prepared: PreparedSet) -> None:
    """Refuse more points than are stored, unknown splits, and evaluation on training shapes.

    Raises:
        ConfigError: Naming the option.
    """
    for name in config.data.train_splits:
        check_split(prepared, "data.train_splits", name)
    joined = prepared.join(config.data.train_splits)
    check_points(prepared, config.data.num_points)
    if not config.eval.enabled:
        return
    split = config.eval.split
    check_split(prepared, "eval.split", split, or_else=", or eval.enabled=false")
    is_trained = split in {part.name for part in joined.members}
    if is_trained or prepared.splits[split].rows == 0:
        reason = "it is trained on" if is_trained else f"it is empty in {prepared.path}"
        raise ConfigError(
            f"eval.split={split}: {reason}; choose a held-out split with shapes in it, or "
            "eval.enabled=false"
        )


def check_labeled(config: PretrainConfig, prepared: PreparedSet) -> None:
    """Refuse to use the classes of a set in which training shapes have none.

    Raises:
        ConfigError: Naming the option that needs them.
    """
    needs = ["loss.self_contrast"] if config.loss.self_contrast else []
    if config.teacher.text.name not in (None, SOURCE) and config.data.text == "category":
        needs.append("teacher.text.name")
    if not needs or not prepared.manifest.get("class_histogram", {}).get("", 1):
        return
    joined = prepared.join(config.data.train_splits)
    labels = prepared.read(joined, columns=["label"])["label"].to_numpy()
    unlabeled = int((labels < 0).sum())
    if unlabeled:
        raise ConfigError(
            f"{needs[0]}: {unlabeled} of {len(labels)} training shapes of {prepared.path} have no "
            "class; prepare the set again with a class for each, or set data.text=caption or "
            "teacher.text.name=null, and loss.self_contrast=false"
        )
