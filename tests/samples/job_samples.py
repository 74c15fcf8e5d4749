"""Jobs run from a configuration, and small weights and sets for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from recon_ray.config.sections.common import JobConfig
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.custom import CustomSource
from recon_ray.models.presets import MODELS, whole_arguments
from recon_ray.tasks.registry import JOBS, Job
from recon_ray.weights.weight_files import save_weights

ConfigT = TypeVar("ConfigT", bound=JobConfig)
SIZES: dict[str, Any] = {
    "embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 8,
}  # fmt: skip


def changed(config: ConfigT, **sections: Any) -> ConfigT:
    """Return the configuration with other options, checked again."""
    tree = config.model_dump()
    for name, options in sections.items():
        tree[name] = {**tree[name], **options} if isinstance(options, dict) else options
    return type(config)(**tree)


def run_config(job: str, config: JobConfig) -> tuple[dict[str, Any], Path]:
    """Run a job in this process and return its ``result.json`` and its folder."""
    path = Path(str(JOBS[job].load_main()(Job(job, config)).result_path))
    return json.loads(path.read_text()), path.parent


def run_options(job: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """Run a job with the sections of a configuration; see :func:`run_config`."""
    return run_config(job, JOBS[job].load_config()(**options))


def usual_options(prepared: PreparedSet, storage: Path, weights: Path) -> dict[str, Any]:
    """Return what the jobs that measure weights have in common."""
    return {
        "run": {"name": "run", "storage": str(storage / "runs"), "seed": 3},
        "cluster": {"workers": 0},
        "runtime": {"threads": 1},
        "init_from": str(weights),
        "data": {"path": str(prepared.path), "num_points": 64},
    }


def save_model(path: Path, kind: str = "recon", seed: int = 0, **more: Any) -> Path:
    """Save a model of random weights with :data:`SIZES`."""
    torch.manual_seed(seed)
    architecture = {**SIZES, **more}
    state = MODELS[kind](**architecture).state_dict()
    save_weights(path, state, kind=kind, architecture=whole_arguments(kind, architecture))
    return path


def prepare_clouds(
    folder: Path, clouds: Mapping[str, Sequence[tuple[str, np.ndarray]]], **options: Any
) -> PreparedSet:
    """Prepare clouds by split, each with its class."""
    for split, members in clouds.items():
        for i, (category, cloud) in enumerate(members):
            path = folder / "clouds" / split / category / f"{split}{i:03d}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, cloud)
    prepare(CustomSource(folder / "clouds"), folder / "set", PrepareOptions(views=0, **options))
    return PreparedSet.open(folder / "set")


def flat_and_tall(count: int) -> list[tuple[str, np.ndarray]]:
    """Make clouds of two classes that are easy to tell apart."""
    return [
        (name, np.random.default_rng(i).normal(size=(80, 3)) * shape)
        for i in range(count)
        for name, shape in [(("flat", (1.0, 0.1, 1.0)), ("tall", (0.1, 1.0, 0.1)))[i % 2]]
    ]
