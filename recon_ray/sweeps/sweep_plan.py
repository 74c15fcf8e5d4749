"""Plan of a sweep: its trials, after every problem was refused that shows before the first one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from recon_ray.config.fields import option
from recon_ray.config.help import as_mapping
from recon_ray.config.loader import assemble
from recon_ray.config.sections.common import JobConfig, ProtocolConfig
from recon_ray.config.sections.training import TrainingConfig
from recon_ray.errors import ConfigError
from recon_ray.sweeps.config import SweepConfig
from recon_ray.sweeps.optuna_search import import_optuna
from recon_ray.sweeps.search_space import (
    Domain,
    check_space,
    first_values,
    list_trials,
    parse_space,
    trial_name,
    with_seeds,
)
from recon_ray.sweeps.trial_placement import Trial
from recon_ray.tasks.config_checks import find_set
from recon_ray.tasks.registry import JOBS
from recon_ray.tasks.start_weights import resolve


@dataclass(frozen=True)
class Plan:
    """Sweep that has been checked.

    Attributes:
        config: The configuration, with that of the job resolved.
        base: The job's configuration with the first value of everything.
        space: What is varied, seeds included.
        trials: All trials, if they are known beforehand.
        drawn: Number of draws, with those that repeat the configuration and seed of a trial.
        grace: Epochs before which no trial is stopped.
    """

    config: SweepConfig
    base: JobConfig
    space: dict[str, Domain]
    trials: list[Trial]
    drawn: int = 0
    grace: int = 1

    @property
    def metric(self) -> str:
        """Metric of ``result.json`` that compares the trials."""
        return self.config.sweep.metric or str(JOBS[self.config.job].metric)

    @property
    def is_nested(self) -> bool:
        """Return whether each trial has workers of its own."""
        return self.base.cluster.max_workers > 1


def plan_sweep(config: SweepConfig, origins: Mapping[str, str]) -> Plan:
    """Check the job's configuration and every value of the space.

    Raises:
        ConfigError: One line each problem.
        DataError: If a data set is damaged.
    """
    options = config.sweep
    inner = InnerJob.read(JOBS[config.job].load_config(), config.config, "config", origins)
    space = parse_space(options.space)
    written = origins.get("sweep.space", "sweep.space")
    places = {key: origins.get(f"sweep.space.{key}", written) for key in space}
    build = partial(inner.build, places=places)
    corners = check_space(space, build, places)
    base = build(first_values(space))
    space = with_seeds(space, options.seeds, base.run.seed)
    drawn, built = [], {}
    if options.search == "random":
        listed = list_trials(space, samples=options.samples, seed=options.seed)
        drawn = [Trial(trial_name(i, values), values) for i, values in enumerate(listed)]
        built = {trial.name: build(trial.values) for trial in drawn}
    _check_sets([base, *built.values()])
    trials = distinct(drawn, lambda trial: built[trial.name])
    resolved = config.model_copy(update={"config": as_mapping(resolve(base))})
    grace = options.grace_epochs or max(_usual_grace(one) for one in (base, *corners))
    plan = Plan(resolved, base, space, trials, len(drawn), grace)
    _check_search(plan, max(option(one, "train.epochs", 0) for one in (base, *corners)))
    return plan


def distinct(trials: Iterable[Trial], config_of: Callable[[Trial], JobConfig]) -> list[Trial]:
    """Return the trials without those of the same configuration and seed as an earlier one.

    They would compute the same number again, which is no independent run.
    """
    first: dict[str, Trial] = {}
    for trial in trials:
        first.setdefault(config_of(trial).model_dump_json(), trial)
    return [*first.values()]


def _usual_grace(config: JobConfig) -> int:
    """Return the epochs of the warm-up and a quarter of all: before, differences are noise."""
    if not isinstance(config, TrainingConfig):
        return 1
    return math.ceil(config.optim.warmup_epochs) + math.ceil(config.train.epochs / 4)


def _check_sets(configs: Sequence[JobConfig]) -> None:
    """Refuse data sets that the trials could not open; those that they make come later."""
    made = {option(one, "data.path") for one in configs if makes_set(one)}
    for path in {str(option(one, "data.path")) for one in configs} - made:
        find_set("config.data.path", path)


def makes_set(config: JobConfig) -> bool:
    """Return whether the job makes a missing data set."""
    return getattr(option(config, "data"), "create", "never") != "never"


def _check_search(plan: Plan, longest: int) -> None:
    """Refuse a scheduler that has nothing to go by, and a search that is not installed."""
    options, base = plan.config.sweep, plan.base
    if options.search == "optuna":
        import_optuna()
    if plan.config.cluster.workers == 0:
        if options.is_stopping or options.search != "random" or plan.is_nested:
            raise ConfigError(
                "cluster.workers=0 runs one trial after another without Ray: sweep.scheduler, "
                "sweep.search=optuna and config.cluster.workers need Ray; leave it out"
            )
        return
    if not options.is_stopping:
        return
    if not hasattr(base, "train"):
        raise ConfigError(
            f"sweep.scheduler={options.scheduler}: job={plan.config.job} has no epochs to stop "
            "after; set sweep.scheduler=none"
        )
    if options.watch.startswith("val/") and not validates(base):
        raise ConfigError(
            f"sweep.scheduler={options.scheduler} compares {options.watch}, but the trials are not "
            "validated while they train; set config.data.validation_split (pretrain: "
            "config.validation.every_epochs), or sweep.watch=train/loss with sweep.watch_mode=min"
        )
    steps = option(base, "train.steps")
    if steps is not None:
        raise ConfigError(
            f"sweep.scheduler={options.scheduler} goes by epochs, but config.train.steps={steps} "
            "may end a trial within one; set config.train.epochs instead"
        )
    if plan.grace >= longest:
        raise ConfigError(
            f"sweep.scheduler={options.scheduler} would stop nothing: the grace is {plan.grace} of "
            f"config.train.epochs={longest}; lower sweep.grace_epochs, or set sweep.scheduler=none"
        )


def validates(base: JobConfig) -> bool:
    """Return whether a training job writes ``val/`` records epoch by epoch."""
    validation = getattr(base, "validation", None)
    if validation is not None:
        return validation.every_epochs is not None
    by_test = isinstance(base, ProtocolConfig) and base.flags.selects_on_test
    return by_test or getattr(getattr(base, "data", None), "validation_split", None) is not None


# --- Options of one job in another job's configuration -------------------------------------------


@dataclass(frozen=True)
class InnerJob:
    """Options of a job as they were written, and where.

    Attributes:
        schema: Root model of the job.
        files: YAML files that it includes.
        written: Its options; keys may be dotted.
        places: Where they were written, for messages.
    """

    schema: type[JobConfig]
    files: tuple[Path, ...]
    written: Mapping[str, Any]
    places: Mapping[str, str]

    @classmethod
    def read(
        cls,
        schema: type[JobConfig],
        options: Mapping[str, Any],
        key: str,
        origins: Mapping[str, str],
    ) -> InnerJob:
        """Take the options apart that the outer configuration holds under a key (``config``).

        Raises:
            ConfigError: If ``include`` is no list of files.
        """
        written = dict(options)
        place = f"{key}.include"
        files = _included(written.pop("include", None), place, origins.get(place, ""))
        places = {name: origins.get(f"{key}.{name}", key) for name in written}
        return cls(schema, files, written, places)

    def build(
        self, values: Mapping[str, Any], *, places: Mapping[str, str] | None = None
    ) -> JobConfig:
        """Make the configuration with further values, by dotted key, on top of the written ones.

        Raises:
            ConfigError: Everything that is wrong, one line each.
        """
        kept = {key: value for key, value in self.written.items() if key not in values}
        origins = {**self.places, **(places or {})}
        return assemble(self.schema, self.files, {**kept, **values}, origins=origins).config


def _included(include: object, key: str, origin: str) -> tuple[Path, ...]:
    """Files that ``include`` names, relative to the file that does."""
    names = include if isinstance(include, list | tuple) else [] if include is None else [include]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{key} ({origin}): expected a list of YAML files")
    file, _, line = origin.rpartition(":")
    folder = Path(file).parent if line.isdigit() else Path()
    return tuple(folder / str(name) for name in names)
