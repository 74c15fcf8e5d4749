"""Table of the jobs: name to configuration, main function and metric.

Command line, sweeps, reproduction and help read this table; there is no other list. Modules are
named, not imported, so that reading the table loads neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

from recon_ray.config.sections.common import JobConfig
from recon_ray.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=JobConfig)


@dataclass(frozen=True)
class Job(Generic[ConfigT]):
    """Input of a job's main function.

    Attributes:
        name: Name of the job, as in ``jobs/<name>.py``.
        config: The validated configuration.
        origins: Place of every option that was set, by dotted key.
        files: YAML files read, in the order in which they take effect.
        dry_run: Build everything, take one step, report memory and time, stop.
    """

    name: str
    config: ConfigT
    origins: dict[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    dry_run: bool = False


@dataclass(frozen=True)
class JobResult:
    """Output of a job's main function: a short table to print and the path of ``result.json``.

    Attributes:
        table: The table.
        result_path: The path.
        failure: What went wrong in parts of the job that ended otherwise, in one sentence.
    """

    table: str
    result_path: Path | str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Flag:
    """Flag of one job that prints a text and stops: ``--cards [NAME]``.

    Attributes:
        meaning: What it prints, for ``--help``.
        show: ``module:function`` of the text; takes the word after the flag, or None.
    """

    meaning: str
    show: str | Callable[[str | None], str]


@dataclass(frozen=True)
class JobSpec:
    """Entry of the table.

    Attributes:
        config: ``module:class`` of its configuration; the docstring is its summary.
        main: ``module:function`` that runs it: Job in, JobResult out.
        metric: Metric of ``result.json`` by which trials are compared; None if it is not swept.
        default: File in ``configs/`` that is read where the command line names none.
        word: Option that a bare word sets: ``benchmark.py step`` for ``what=step``.
        flags: Flags of its own, by name.
    """

    config: str | type[JobConfig]
    main: str | Callable[[Job[Any]], JobResult]
    metric: str | None = None
    default: str | None = None
    word: str | None = None
    flags: Mapping[str, Flag] = field(default_factory=dict)

    def load_config(self) -> type[JobConfig]:
        """Import the root model of the configuration."""
        return load_object(self.config)

    def load_main(self) -> Callable[[Job[Any]], JobResult]:
        """Import the main function, with everything that only this job needs."""
        return load_object(self.main)


def _task(folder: str, config: str, main: str, **options: Any) -> JobSpec:  # noqa: ANN401
    """Return the entry of a job with a folder of its own in ``tasks/``."""
    place = f"recon_ray.tasks.{folder}"
    return JobSpec(f"{place}.config:{config}", f"{place}.{main}", **options)


_CARDS = Flag(
    "describe the published data sets, or the one that is named, and stop",
    "recon_ray.tasks.prepare.job:show_cards",
)

JOBS: dict[str, JobSpec] = {
    "prepare": _task("prepare", "PrepareConfig", "job:prepare", flags={"--cards": _CARDS}),
    "cache_teachers": _task("cache_teachers", "CacheTeachersConfig", "job:cache_teachers"),
    "pretrain": _task(
        "pretrain",
        "PretrainConfig",
        "job:pretrain",
        metric="probe_full_after",
        default="quickstart.yaml",
    ),
    "finetune": _task("classify", "FinetuneConfig", "finetune_job:finetune", metric="accuracy"),
    "evaluate": _task(
        "classify", "EvaluateConfig", "evaluate_job:evaluate_classifier", metric="accuracy"
    ),
    "linear_probe": _task(
        "linear_probe", "LinearProbeConfig", "job:linear_probe", metric="accuracy"
    ),
    "zeroshot": _task("zeroshot", "ZeroshotConfig", "job:zeroshot", metric="zeroshot_accuracy"),
    "partseg": _task("partseg", "PartsegConfig", "job:partseg", metric="instance_miou"),
    "embed": _task("embed", "EmbedConfig", "job:embed"),
    "retrieve": _task("retrieve", "RetrieveConfig", "job:retrieve"),
    "visualize": _task("visualize", "VisualizeConfig", "job:visualize"),
    "import_weights": _task("import_weights", "ImportWeightsConfig", "job:import_weights"),
    "sweep": JobSpec("recon_ray.sweeps.config:SweepConfig", "recon_ray.sweeps.job:sweep"),
    "fewshot": JobSpec(
        "recon_ray.sweeps.fewshot.config:FewshotConfig", "recon_ray.sweeps.fewshot.job:fewshot"
    ),
    "reproduce": JobSpec(
        "recon_ray.reproduce.config:ReproduceConfig",
        "recon_ray.reproduce.job:reproduce",
        default="reproduce/paper.yaml",
    ),
    "benchmark": JobSpec(
        "recon_ray.benchmarks.config:BenchmarkConfig",
        "recon_ray.benchmarks.job:benchmark",
        word="what",
    ),
    "doctor": JobSpec("recon_ray.doctor.config:DoctorConfig", "recon_ray.doctor.job:doctor"),
}


def find_job(name: str) -> JobSpec:
    """Look a job up.

    Raises:
        ConfigError: If there is no such job.
    """
    if name not in JOBS:
        raise ConfigError(f"unknown job {name!r}; choose one of {', '.join(JOBS)}")
    return JOBS[name]


def swept_jobs() -> list[str]:
    """Return the names of the jobs that a sweep can run: those with a metric."""
    return [name for name, spec in JOBS.items() if spec.metric is not None]


def load_object(place: object) -> Any:  # noqa: ANN401 - whatever lies there
    """Import ``module:name``; return anything that is no text as it is."""
    if not isinstance(place, str):
        return place
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
