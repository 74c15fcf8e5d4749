"""The runs of the published table: what each needs, what is missing, and what is scaled down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from recon_ray.config.help import as_mapping
from recon_ray.config.loader import override
from recon_ray.config.sections.common import JobConfig
from recon_ray.errors import ConfigError
from recon_ray.reproduce.budget import Budget, describe
from recon_ray.reproduce.config import PublishedSetSection, ReproduceConfig, RowsSection
from recon_ray.reproduce.paper import FOLDS, ROWS, SEEDS, Row
from recon_ray.runs.storage import join
from recon_ray.sweeps.fewshot.config import FewshotConfig
from recon_ray.sweeps.fewshot.job import fold_config, fold_trial
from recon_ray.sweeps.nested_config import InnerJob, option
from recon_ray.sweeps.trial_placement import Trial
from recon_ray.tasks.classify.config import EvaluateConfig, FinetuneConfig
from recon_ray.tasks.linear_probe.config import LinearProbeConfig
from recon_ray.tasks.partseg.config import PartsegConfig
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.zeroshot.config import ZeroshotConfig

#: Root model of what each option of the section ``rows`` holds.
SCHEMAS: dict[str, type[JobConfig]] = {
    "voting": EvaluateConfig,
    "fewshot": FewshotConfig,
    "zeroshot_modelnet10": ZeroshotConfig,
    "zeroshot_modelnet40": ZeroshotConfig,
    "zeroshot_scanobjectnn": ZeroshotConfig,
    "svm": LinearProbeConfig,
    "partseg": PartsegConfig,
}
#: Name of the pre-training among the trials.
PRETRAIN = "pretrain"


@dataclass(frozen=True)
class RowPlan:
    """The runs of one row.

    Attributes:
        row: The row.
        config: Configuration that its runs have in common, scaled down.
        trials: Its runs.
        scaled: What was scaled down.
        path: Folder of the prepared set; None where none is named.
        stand_in: What the configuration says of it.
        episodes: The few-shot episodes.
        missing: Why it cannot be run: the set or the weights that are missing.
        broken: Why it cannot be run although all of it is there.
    """

    row: Row
    config: JobConfig
    trials: tuple[Trial, ...]
    scaled: tuple[str, ...]
    path: str | None
    stand_in: bool | None = None
    episodes: tuple[tuple[int, int, int], ...] = ()
    missing: str = ""
    broken: str = ""

    @property
    def is_run(self) -> bool:
        """Return whether its runs can be started."""
        return not self.missing and not self.broken


@dataclass(frozen=True)
class TablePlan:
    """All that is to be run.

    Attributes:
        config: The configuration with those of the jobs resolved; running it again is the same.
        budget: How much of it is done.
        pretrain: Configuration of the pre-training, scaled down; None where weights are named.
        scaled: What was scaled down in it.
        rows: The rows in the order of the table.
    """

    config: ReproduceConfig
    budget: Budget
    pretrain: PretrainConfig | None
    scaled: tuple[str, ...]
    rows: tuple[RowPlan, ...]

    def starts_itself(self, plan: RowPlan) -> bool:
        """Return whether a row starts from the pre-training of this table."""
        own = self.pretrain
        start = None if own is None else join(own.run.storage, str(own.run.name))
        return start is not None and option(plan.config, "init_from") == start


def plan_table(config: ReproduceConfig, origins: Mapping[str, str], storage: str) -> TablePlan:
    """Resolve the configuration of every row and list its runs.

    Args:
        config: The configuration.
        origins: Places of its values.
        storage: Folder or URI in which the runs' folders are made.

    Raises:
        ConfigError: One line each problem.
    """
    budget = Budget.of(config.reproduce)
    resolved: dict[str, Any] = {}
    pretrain: PretrainConfig | None = None
    scaled: tuple[str, ...] = ()
    if config.init_from is None:
        inner = InnerJob.read(PretrainConfig, config.pretrain or {}, PRETRAIN, origins)
        full = _built(inner, PRETRAIN, {})
        pretrain, scaled = _scaled_pretraining(config, full, budget, storage)
        resolved[PRETRAIN] = as_mapping(full)
    jobs = {name: _inner(config, name, origins) for name in _wanted(config)}
    plans = [
        _row_plan(config, row, jobs[_option(row)], budget, storage)
        for row in ROWS
        if _option(row) in jobs and row.follows in (None, *jobs)
    ]
    written = {name: _written(job) for name, job in jobs.items()}
    resolved["rows"] = config.rows.model_copy(update=written)
    return TablePlan(config.model_copy(update=resolved), budget, pretrain, scaled, tuple(plans))


def _scaled_pretraining(
    config: ReproduceConfig, full: JobConfig, budget: Budget, storage: str
) -> tuple[PretrainConfig, tuple[str, ...]]:
    """The pre-training as one of the runs, and what was scaled down in it."""
    changes = budget.changes(full)
    fixed = {"run.name": PRETRAIN, "run.storage": storage, "run.seed": config.run.seed}
    if config.cluster.workers == 0:
        fixed["cluster.workers"] = 0
    if config.cluster.address is not None:
        fixed["cluster.address"] = config.cluster.address
    scaled = override(full, {**changes, **_runtime(config), **fixed})
    assert isinstance(scaled, PretrainConfig)
    return scaled, tuple(describe(full, changes))


def _written(job: InnerJob) -> dict[str, Any]:
    """The options of a row with its files resolved, without what the table fills in."""
    options = as_mapping(job.build({"init_from": PRETRAIN}))
    return {name: value for name, value in options.items() if name not in ("init_from", "run")}


def _wanted(config: ReproduceConfig) -> list[str]:
    """Options of the section ``rows`` that are run; voting goes with the fine-tuning."""
    chosen = config.reproduce.rows or RowsSection.model_fields
    return [
        name for name in RowsSection.model_fields if name in chosen and getattr(config.rows, name)
    ]


def _option(row: Row) -> str:
    return row.name if row.follows is None else "voting"


def _inner(config: ReproduceConfig, name: str, origins: Mapping[str, str]) -> InnerJob:
    options = getattr(config.rows, name)
    return InnerJob.read(SCHEMAS.get(name, FinetuneConfig), options, f"rows.{name}", origins)


def _built(job: InnerJob, key: str, values: Mapping[str, Any]) -> JobConfig:
    """Make the configuration of a job; messages name the option that holds it.

    Raises:
        ConfigError: One line each problem.
    """
    try:
        return job.build(values)
    except ConfigError as error:
        lines = [f"{key}.{line}" for line in str(error).splitlines()]
        raise ConfigError("\n".join(lines)) from None


def _runtime(config: ReproduceConfig) -> dict[str, Any]:
    return {f"runtime.{name}": value for name, value in config.runtime.model_dump().items()}


def _fixed(config: ReproduceConfig, row: Row, storage: str) -> dict[str, Any]:
    """What the table decides of a row's configuration."""
    fixed: dict[str, Any] = {
        "init_from": getattr(config, row.weights) or config.init_from or join(storage, PRETRAIN),
        "run.seed": config.run.seed,
        **_runtime(config),
    }
    path = _set_of(config, row).path
    if path is not None:
        fixed["data.path"] = path
    if row.job == "zeroshot":
        fixed["zeroshot.splits"] = ["train", "test"]  # the job tells them apart
    if row.repeated == "folds":
        fixed["data.episodes"] = config.sets.episodes
    return fixed


def _set_of(config: ReproduceConfig, row: Row) -> PublishedSetSection:
    section: PublishedSetSection = getattr(config.sets, row.set)
    return config.sets.modelnet40 if row.set == "fewshot" and section.path is None else section


def _row_plan(
    config: ReproduceConfig, row: Row, job: InnerJob, budget: Budget, storage: str
) -> RowPlan:
    section = _set_of(config, row)
    full = _built(job, f"rows.{_option(row)}", _fixed(config, row, storage))
    if option(full, "cluster.workers") not in (0, 1):
        raise ConfigError(
            f"rows.{_option(row)}.cluster.workers: every run of the table is one process; leave it "
            "out"
        )
    changes = budget.changes(full)
    scaled = describe(full, changes)
    # Hashes are compared once, by the driver.
    base = override(full, {**changes, "data.verify": False})
    trials, episodes = _trials(row, base, budget, config.run.seed, storage)
    runs = {"seeds": (budget.seeds, SEEDS), "folds": (budget.folds, FOLDS)}.get(row.repeated)
    if runs is not None and runs[0] != runs[1]:
        scaled.insert(0, f"{runs[0]} of {runs[1]} {row.repeated}")
    if isinstance(base, FewshotConfig):
        base = fold_config(base)
    return RowPlan(row, base, trials, tuple(scaled), section.path, section.stand_in, episodes)


def _trials(
    row: Row, base: JobConfig, budget: Budget, seed: int, storage: str
) -> tuple[tuple[Trial, ...], tuple[tuple[int, int, int], ...]]:
    if isinstance(base, FewshotConfig):
        folds = range(budget.folds)
        section = base.fewshot.model_copy(update={"folds": tuple(folds)})
        common = fold_config(base)
        drawn = [fold_trial(common, episode) for episode in section.episodes]
        named = [replace(trial, name=f"{row.name}_{trial.name}") for trial in drawn]
        return tuple(named), tuple(section.episodes)
    if row.repeated != "seeds":
        return (Trial(row.name, {}),), ()
    trials = []
    for number in range(seed, seed + budget.seeds):
        values: dict[str, Any] = {"run.seed": number}
        if row.follows is not None:
            values["init_from"] = join(storage, seed_name(row.follows, number))
        trials.append(Trial(seed_name(row.name, number), values))
    return tuple(trials), ()


def seed_name(row: str, seed: int) -> str:
    """Name of the run of a row with one seed."""
    return f"{row}_seed-{seed}"
