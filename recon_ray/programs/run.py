"""The folder and the records of a run."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from pyarrow import fs as pafs

from recon_ray import __version__
from recon_ray.cli import JobResult
from recon_ray.config.help import dump_yaml
from recon_ray.config.schema import JobConfig
from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.train.checkpoint import MANIFEST, CheckpointStore, open_filesystem
from recon_ray.train.runtime import RunFolder

logger = logging.getLogger(__name__)

#: Packages whose versions explain a run.
PACKAGES = (
    "torch",
    "ray",
    "numpy",
    "pyarrow",
    "open_clip_torch",
    "timm",
    "scikit-learn",
    "trimesh",
)
#: Options that may differ when a run is continued: they do not change what is computed.
MAY_CHANGE = (
    "cluster.", "resume", "run.storage", "runtime.threads", "runtime.ops_backend", "train.steps",
    "train.log_every_steps", "train.commit_every_seconds", "train.keep_checkpoints",
)  # fmt: skip


@dataclass
class Run:
    """One run of a job: its folder, and its ``result.json`` at the end.

    Args:
        job: Name of the job.
        config: The resolved configuration.
        folder: ``<storage>/<run name>``.
    """

    job: str
    config: JobConfig
    folder: RunFolder
    started: float = field(default_factory=time.monotonic)

    def finish(
        self,
        metrics: Mapping[str, float],
        *,
        table: str,
        selection: str,
        counts: Mapping[str, Any],
        **more: Any,  # noqa: ANN401 - further records of the job
    ) -> JobResult:
        """Write ``result.json`` and give what the job prints.

        Args:
            metrics: Name to number.
            table: Short table for the terminal.
            selection: How the numbers were chosen.
            counts: What was counted.
            more: Further records.
        """
        result = {
            "job": self.job,
            "status": "done",
            "metrics": dict(metrics),
            "selection": selection,
            "counts": dict(counts),
            "seconds": round(time.monotonic() - self.started, 3),
            "seed": self.config.run.seed,
            **more,
        }
        path = self.folder.write("result.json", json.dumps(result, indent=2) + "\n")
        shown = str(path) if self.folder.is_local else f"{self.folder.uri}/result.json"
        return JobResult(table=table, result_path=shown)


def start_run(job: str, config: JobConfig, *, label: str, resume: str = "never") -> Run:
    """Make or continue the folder of a run and record what explains it.

    Args:
        job: Name of the job.
        config: The resolved configuration.
        label: What a generated name ends with besides the time.
        resume: ``auto`` continues, ``never`` sets an earlier run of the name aside, a path is the
            checkpoint that a new run starts from.

    Raises:
        ConfigError: If the run exists with a configuration that computes something else, or
            ``resume`` names no checkpoint.
    """
    name = config.run.name or f"{job}-{label}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = RunFolder(f"{config.run.storage.rstrip('/')}/{name}")
    config = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    if resume == "never":
        aside = folder.set_aside(time.strftime("%Y%m%d-%H%M%S"))
        if aside is not None:
            logger.info("the earlier run of this name is kept in %s", aside)
    else:
        _refuse_other_config(folder, config)
    if resume not in ("auto", "never"):
        _adopt_checkpoint(folder, resume)
    folder.write("config.yaml", dump_yaml(config))
    folder.write("environment.json", json.dumps(environment(), indent=2) + "\n")
    logger.info("%s %s, run folder %s", job, __version__, folder.uri)
    if resume != "never":
        logger.info("if it is interrupted, continue it with run.name=%s", name)
    return Run(job, config, folder)


def environment() -> dict[str, Any]:
    """Versions and machine, without anything secret."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "recon_ray": __version__,
        "git": _git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
    }


def _git_state() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if shutil.which("git") is None or not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _refuse_other_config(folder: RunFolder, config: JobConfig) -> None:
    text = folder.read("config.yaml")
    if text is None:
        return
    before = _flat(yaml.safe_load(text))
    now = _flat(config.model_dump(mode="json"))
    changed = [
        f"{key}: {before.get(key)!r} then, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(MAY_CHANGE)
    ]
    if changed:
        raise ConfigError(
            f"run.name={config.run.name}: {folder.uri} holds a run with another configuration "
            f"({'; '.join(changed)}); choose another run.name, or resume=never to set it aside"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _adopt_checkpoint(folder: RunFolder, path: str) -> None:
    """Copy a checkpoint of another run into a run that has none yet."""
    if CheckpointStore(folder.checkpoints).names():
        return
    source, root = open_filesystem(path.rstrip("/"))
    if source.get_file_info(f"{root}/{MANIFEST}").type == pafs.FileType.NotFound:
        raise ConfigError(
            f"resume={path}: no checkpoint there ({MANIFEST} is missing); give a folder "
            "<run>/checkpoints/step-<number>, or auto"
        )
    parent, _, name = root.rpartition("/")
    CheckpointStore(parent if "://" not in path else path.rpartition("/")[0]).load(name)  # verifies
    target, target_root = open_filesystem(f"{folder.checkpoints}/{name}")
    try:
        target.create_dir(target_root, recursive=True)
        pafs.copy_files(root, target_root, source, target)
    except OSError as error:
        raise CheckpointError(
            f"{folder.checkpoints}/{name}: it could not be written ({error})"
        ) from error
