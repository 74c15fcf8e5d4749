"""Life of a run: opened, begun, continued or refused, finished with ``result.json``."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import yaml

from recon_ray import __version__
from recon_ray.cluster.workarounds.undocumented import is_submitted
from recon_ray.config.fields import section_model
from recon_ray.config.help import dump_yaml
from recon_ray.config.sections.common import JobConfig
from recon_ray.config.sections.training import TrainingConfig
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.runs.checkpoint import Checkpoint, CheckpointStore, pack, place_of
from recon_ray.runs.folder import START_FRESH_HINT, RunFolder
from recon_ray.runs.lease import FILE as LEASE
from recon_ray.runs.lease import Lease
from recon_ray.storage import is_uri, join
from recon_ray.tasks.input_hashes import INPUTS, inputs_of, refuse_other_inputs, same_inputs
from recon_ray.tasks.registry import JobResult

ConfigT = TypeVar("ConfigT", bound=JobConfig)
TrainT = TypeVar("TrainT", bound=TrainingConfig)

logger = logging.getLogger(__name__)

#: Time in the names of runs.
TIME = "%Y%m%d-%H%M%S"
#: File of a run with versions and machine.
ENVIRONMENT = "environment.json"
#: Packages whose versions explain a run.
PACKAGES = (
    "torch", "ray", "numpy", "pyarrow", "open_clip_torch", "timm", "scikit-learn", "trimesh",
)  # fmt: skip
#: Options that may differ when a run is continued: they do not change what is computed.
MAY_CHANGE = (
    "cluster.", "resume", "run.name", "run.storage", "runtime.threads", "runtime.ops_backend",
    "runtime.compile", "runtime.cuda_graph", "train.bucket_megabytes", "train.steps",
    "train.gradient_exchange", "train.activation_checkpointing",
    "train.log_every_steps", "train.commit_every_seconds", "train.keep_checkpoints",
    "train.keep_every_steps", "train.keep_optimizer", "data.verify", "data.version",
    "data.cache_bytes", "data.cache_folder",
    "eval.votes", "eval.batch_size", "eval.save_every_seconds",
    # of a sweep: which trials there are besides those that stay, and how they are compared and run
    "config.cluster.", "config.resume", "config.run.name", "config.run.storage",
    "config.runtime.threads", "config.train.keep_optimizer",
    "sweep.samples", "sweep.metric", "sweep.mode", "sweep.max_concurrent", "sweep.cpus_per_trial",
    "sweep.gpus_per_trial", "sweep.grace_epochs", "fewshot.",
    # of the table, whose finished runs are compared one by one
    "reproduce.", "rows.", "sets.",
)  # fmt: skip


@dataclass
class Run:
    """A run of a job: its folder, and its ``result.json`` at the end.

    Args:
        job: Name of the job.
        config: The resolved configuration.
        folder: ``<storage>/<run name>``.
        resume: ``auto`` continues, ``never`` sets an earlier run of the name aside, a path is the
            checkpoint that a new run starts from.
        start: That checkpoint, unless the run has some of its own.
        inputs: Hashes of the sets and the weights that it reads.
        is_named: Whether the user has chosen the name; a name that was made is of a new folder.
    """

    job: str
    config: JobConfig
    folder: RunFolder
    resume: str = "never"
    start: Checkpoint | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    is_named: bool = True
    started: float = field(default_factory=time.monotonic)
    has_begun: bool = False
    lease: Lease | None = None

    def begin(self) -> None:
        """Make or continue the folder and record what explains the run; once only.

        Raises:
            ConfigError: If the folder cannot be made in ``run.storage``, or another job is running
                there now.
            CheckpointError: If a file cannot be written, as the disk is full for example.
        """
        if self.has_begun:
            return
        self.has_begun = True
        self.lease = Lease(self.folder.uri, self.config.run.name)
        self.lease.check()
        if self.resume == "never" and self.is_named:
            self._set_aside(self.lease)
        _make_folder(self.folder, self.config.run.storage, is_new=not self.is_named)
        self.lease.take()
        if self.start is not None:
            start = self.start
            packed = pack(
                start.step,
                model=start.model,
                train=start.train,
                architecture=start.architecture,
                records=start.records,
            )
            CheckpointStore(self.folder.checkpoints).write(packed)
        elif self.resume not in ("auto", "never"):
            logger.info("the run has checkpoints of its own, %s is not read again", self.resume)
        self.folder.write("config.yaml", dump_yaml(self.config))
        if self.inputs:
            self.folder.write(INPUTS, json.dumps(self.inputs, indent=2) + "\n")
        record = {"job": self.job, **environment()}
        self.folder.write(ENVIRONMENT, json.dumps(record, indent=2) + "\n")
        logger.info("%s %s, run folder %s", self.job, __version__, self.folder.uri)
        if self.resume != "never":
            name = self.config.run.name
            logger.info("if it is interrupted, continue it with run.name=%s", name)

    def _set_aside(self, lease: Lease) -> None:
        """Keep an earlier run of the name under another one."""
        if not self.folder.holds_files(besides=LEASE):
            return
        lease.claim()  # no other job begins it meanwhile
        if self.folder.holds_files(besides=LEASE):  # else another one has just set it aside
            aside = self.folder.set_aside(time.strftime(TIME))
            aside.remove(LEASE)
            logger.info("the earlier run of this name is kept in %s", aside.uri)

    def finish(
        self,
        metrics: Mapping[str, float],
        *,
        table: str,
        selection: str,
        counts: Mapping[str, Any],
        draw: Callable[[], None] | None = None,
        prepared: PreparedSet | None = None,
        status: str = "done",
        **more: Any,  # noqa: ANN401 - further records of the job
    ) -> JobResult:
        """Write ``result.json``, draw, and return the output of the job.

        Args:
            metrics: Name to number.
            table: Short table for the terminal.
            selection: How the numbers were chosen.
            counts: Samples, classes, steps, workers.
            draw: Draws the run's figures; a figure that cannot be written is a failure of its own.
            prepared: The set that was evaluated on; recorded with protocol and weights.
            status: ``done``, or ``incomplete`` where the same command has more to do.
            more: Further records.
        """
        if prepared is not None:
            fields = [f for f in ("protocol", "init_from") if hasattr(self.config, f)]
            origin = {name: getattr(self.config, name) for name in fields}
            more = {**origin, "data": str(prepared.path), **more}
        result = {
            "job": self.job,
            "status": status,
            "metrics": dict(metrics),
            "selection": selection,
            "counts": dict(counts),
            "seconds": round(time.monotonic() - self.started, 3),
            "seed": self.config.run.seed,
            **more,
        }
        path = self.folder.write("result.json", json.dumps(result, indent=2) + "\n")
        failure = None
        try:
            if draw is not None:
                draw()
        except CheckpointError as error:
            failure = str(error)
        if isinstance(self.config, TrainingConfig) and self.config.train.keep_optimizer is False:
            CheckpointStore(self.folder.checkpoints).drop_optimizer()
        if self.lease is not None:
            self.lease.release()
        shown = str(path) if self.folder.is_local else join(self.folder.uri, "result.json")
        return JobResult(table=table, result_path=shown, failure=failure)


def start_run(job: str, config: JobConfig, *, label: str, resume: str = "never") -> Run:
    """Open and begin a run; see :func:`open_run` and :meth:`Run.begin`."""
    run = open_run(job, config, label=label, resume=resume)
    run.begin()
    return run


def open_run(job: str, config: JobConfig, *, label: str, resume: str = "never") -> Run:
    """Find the folder of a run and check that it can be begun or continued; write nothing.

    Raises:
        ConfigError: If the storage cannot be reached, the run has another configuration, or other
            sets or weights, or ``resume`` names no checkpoint.
        CheckpointError: If that checkpoint, or a file of the existing run, is damaged.
    """
    is_named = config.run.name is not None
    config = with_name(job, config, label=label)
    folder = _find_folder(config.run.storage, str(config.run.name))
    inputs = inputs_of(config)
    if resume != "never" or "resume" not in type(config).model_fields:
        _refuse_other_job(folder, job, config)
    if resume != "never":
        refuse_other_config(folder, config, inputs)
        refuse_other_inputs(folder, config, inputs)
    elif not folder.is_local and folder.read("config.yaml") is not None:
        raise ConfigError(
            f"resume=never: {folder.uri} holds a run, and an object store cannot rename it; choose "
            "another run.name"
        )
    is_relative = not is_uri(config.run.storage) and not Path(config.run.storage).is_absolute()
    if is_relative and is_submitted():
        logger.warning(
            "run.storage=%s is relative: it lies in the submitted job's temporary folder; give an "
            "absolute path or a URI to keep the run",
            config.run.storage,
        )
    has_own = CheckpointStore(folder.checkpoints).newest() is not None
    start = None if resume in ("auto", "never") or has_own else _find_checkpoint(resume)
    return Run(job, config, folder, resume, start, inputs, is_named)


def with_recorded_version(config: TrainT) -> TrainT:
    """Return the configuration with the version of the set that an earlier start has read."""
    if config.run.name is None or config.data.version is not None:
        return config
    try:
        text = _find_folder(config.run.storage, config.run.name).read("config.yaml")
        version = yaml.safe_load(text or "{}").get("data", {}).get("version")
    except (yaml.YAMLError, AttributeError):
        return config  # refused by refuse_other_config
    data = config.data.model_copy(update={"version": version})
    return config.model_copy(update={"data": data})


def with_name(job: str, config: ConfigT, *, label: str) -> ConfigT:
    """Return configuration with a name of the run: of job, label, time and chance if it has none.

    Jobs that are started in the same second get different names.
    """
    name = config.run.name or f"{job}-{label}-{time.strftime(TIME)}-{secrets.token_hex(3)}"
    return config.model_copy(update={"run": config.run.model_copy(update={"name": name})})


def _find_folder(storage: str, name: str) -> RunFolder:
    try:
        return RunFolder(join(storage, name))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"run.storage={storage}: it cannot be reached ({_first_line(error)}); give a folder, "
            "or a URI such as s3://bucket/folder"
        ) from error


def _make_folder(folder: RunFolder, storage: str, *, is_new: bool) -> None:
    try:
        folder.local.mkdir(parents=True, exist_ok=not (is_new and folder.is_local))
        if not os.access(folder.local, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if is_new and folder.local.is_dir():
            raise ConfigError(
                f"run.name: {folder.local} was made by another job; start this one again"
            ) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"{folder.local}: it could not be made ({error.strerror}); free space or choose "
                "another run.storage"
            ) from error
        raise ConfigError(
            f"run.storage={storage}: the run's folder {folder.local} cannot be made or written to "
            f"({error.strerror}); choose another run.storage"
        ) from error


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


def _refuse_other_job(folder: RunFolder, job: str, config: JobConfig) -> None:
    """Refuse to continue, or to set aside unasked, what another job has made."""
    for file in (ENVIRONMENT, "result.json"):
        try:
            found = json.loads(folder.read(file) or "{}").get("job")
        except (ValueError, AttributeError):  # it is damaged, or no record
            continue
        if found == job:
            return
        if found is not None:
            way = ", or resume=never to set it aside" if hasattr(config, "resume") else ""
            raise ConfigError(
                f"run.name={config.run.name}: {folder.uri} holds a run of jobs/{found}.py; choose "
                f"another run.name{way}"
            )


def refuse_other_config(
    folder: RunFolder, config: JobConfig, inputs: Mapping[str, str] | None = None
) -> None:
    """Refuse to take what a run has computed for what another configuration would.

    Options that were added after the run was begun had their defaults then. A set or weights may
    have been moved: they count by their content.

    Args:
        folder: The run's folder.
        config: The configuration of now.
        inputs: Hashes of the sets and weights of now.

    Raises:
        ConfigError: Naming what differs.
        CheckpointError: If the ``config.yaml`` of the run is damaged.
    """
    text = folder.read("config.yaml")
    if text is None:
        return
    try:
        before = _flat(yaml.safe_load(text))
    except (yaml.YAMLError, AttributeError) as error:
        raise CheckpointError(
            f"{folder.uri}/config.yaml: it is damaged, so that the run cannot be compared with "
            f"this configuration; {START_FRESH_HINT}"
        ) from error
    now = _flat(config.model_dump(mode="json"))
    added = _flat(_defaults(type(config)).model_dump(mode="json"))
    before |= {key: value for key, value in added.items() if key in now and _is_new(key, before)}
    same = same_inputs(folder, inputs or {})
    changed = [
        f"{key}: {before.get(key)!r} then, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not (key.startswith(MAY_CHANGE) or key in same)
    ]
    if changed:
        raise ConfigError(
            f"run.name={config.run.name}: {folder.uri} holds a run with another configuration "
            f"({'; '.join(changed)}); choose another run.name, or resume=never to set it aside"
        )


def _defaults(model: type[JobConfig]) -> JobConfig:
    """Return all defaults, those of required sections too."""
    sections: dict[str, Any] = {
        name: section.model_construct()
        for name, info in model.model_fields.items()
        if info.is_required() and (section := section_model(info.annotation)) is not None
    }
    return model.model_construct(**sections)


def _is_new(key: str, before: Mapping[str, Any]) -> bool:
    """Return whether a run's configuration has neither an option nor any section around it."""
    parts = key.split(".")
    return not any(".".join(parts[: end + 1]) in before for end in range(len(parts)))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        is_section = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if is_section else {f"{prefix}{key}": value}
    return flat


def _find_checkpoint(path: str) -> Checkpoint:
    """Load the checkpoint that ``resume`` names, or the newest of a run, after verifying it."""
    hint = "give a run folder or a checkpoint in it, <run>/checkpoints/step-<number>, or auto"
    try:
        store, name = place_of(path)
        store.newest()
    except CheckpointError as error:
        raise ConfigError(f"resume={path}: it cannot be reached ({error}); {hint}") from error
    try:
        found = store.load_latest() if name is None else store.load(name)
    except CheckpointError as error:
        raise CheckpointError(f"resume={path}: {error}; give another checkpoint") from error
    if found is None:
        raise ConfigError(f"resume={path}: no checkpoint there; {hint}")
    return found


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
