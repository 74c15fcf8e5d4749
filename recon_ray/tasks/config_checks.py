"""Checks in the driver, before anything is written or started."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from recon_ray.config.sections.common import JobConfig
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.models.presets import MODELS, preset_sizes
from recon_ray.points import ops
from recon_ray.runs.checkpoint import check_model_state
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.run import Run
from recon_ray.tasks.teacher_features import SOURCE


def find_set(key: str, path: Path) -> PreparedSet:
    """Open a prepared set that an option names.

    Raises:
        ConfigError: If there is no such folder.
        DataError: If it is no prepared set, or an incomplete or damaged one.
    """
    if not path.is_dir():
        raise ConfigError(
            f"{key}={path}: no such folder; give the folder of a prepared set, or make one with "
            "jobs/prepare.py"
        )
    return PreparedSet.open(path)


def check_model(config: PretrainConfig) -> None:
    """Refuse sizes of the model that do not fit each other or the clouds.

    Raises:
        ConfigError: Naming the option.
    """
    kind, preset = config.model.kind, config.model.preset
    sizes = {**_defaults(kind), **preset_sizes(preset, kind), **config.model.overrides()}
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


def check_split(config: PretrainConfig, prepared: PreparedSet) -> None:
    """Refuse more points than are stored, unknown splits, and evaluation on training shapes.

    Raises:
        ConfigError: Naming the option.
    """
    path, split = prepared.path, config.eval.split
    for name in config.data.train_splits:
        if name not in prepared.splits:
            raise ConfigError(
                f"data.train_splits: {path} has no split {name!r}; choose of "
                f"{', '.join(prepared.splits)}"
            )
    joined = prepared.join(config.data.train_splits)
    if config.data.num_points > prepared.num_points:
        raise ConfigError(
            f"data.num_points={config.data.num_points}: {path} holds {prepared.num_points} points "
            "a shape; lower it, or prepare the set again with a larger prepare.num_points"
        )
    if not config.eval.enabled:
        return
    if split not in prepared.splits:
        raise ConfigError(
            f"eval.split={split}: {path} has the splits {', '.join(prepared.splits)}; choose one "
            "of them, or eval.enabled=false"
        )
    is_trained = split in {part.name for part in joined.members}
    if is_trained or prepared.splits[split].rows == 0:
        reason = "it is trained on" if is_trained else f"it is empty in {path}"
        raise ConfigError(
            f"eval.split={split}: {reason}; choose a held-out split with shapes in it, or "
            "eval.enabled=false"
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


def check_labels(config: PretrainConfig, prepared: PreparedSet) -> None:
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


def texts_of(prepared: PreparedSet, kind: Literal["category", "caption"]) -> list[str]:
    """Return the texts of a set for a text teacher: one a class, or every caption that occurs.

    A class is read as its dataset card spells it out, else by its name.
    """
    if kind == "caption":
        columns = [prepared.read(name, columns=["caption"])["caption"] for name in prepared.splits]
        return sorted({text for column in columns for text in column.to_pylist()})
    card = prepared.manifest.get("card") or {}
    spelled = dict(zip(card.get("classes", ()), card.get("texts", ()), strict=False))
    return [spelled.get(name, name) for name in prepared.classes]


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


def check_start(run: Run, make_model: Callable[[], nn.Module]) -> None:
    """Refuse a checkpoint to start from that the configured model cannot take.

    Args:
        run: The run.
        make_model: Makes the model; called on the meta device where there is such a checkpoint.

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
        ConfigError: If a GPU is asked for and there is none.
    """
    if config.cluster.workers != 0 or config.runtime.device != "cuda":
        return
    if not torch.cuda.is_available():
        raise ConfigError(
            "runtime.device=cuda: torch finds no usable GPU in this process (cluster.workers=0); "
            "set runtime.device=auto"
        )


def _defaults(kind: str) -> dict[str, Any]:
    parameters = inspect.signature(MODELS[kind]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}
