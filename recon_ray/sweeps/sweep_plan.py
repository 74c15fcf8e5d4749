"""A sweep before its first trial: everything that is wrong with it is refused here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon_ray.config.help import as_mapping
from recon_ray.config.sections.common import JobConfig
from recon_ray.errors import ConfigError
from recon_ray.sweeps.config import SweepConfig
from recon_ray.sweeps.nested_config import InnerJob, option
from recon_ray.sweeps.optuna_search import check_optuna
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


@dataclass(frozen=True)
class Plan:
    """A sweep that has been checked.

    Attributes:
        config: The configuration, with that of the job resolved.
        base: The job's configuration with the first value of everything.
        space: What is varied, seeds included.
        trials: All trials, if they are known beforehand.
    """

    config: SweepConfig
    base: JobConfig
    space: dict[str, Domain]
    trials: list[Trial]

    @property
    def metric(self) -> str:
        """What compares the trials."""
        return self.config.sweep.metric or str(JOBS[self.config.job].metric)

    @property
    def is_nested(self) -> bool:
        """Return whether each trial has workers of its own."""
        return self.base.cluster.max_workers > 1


def plan_sweep(config: SweepConfig, origins: Mapping[str, str]) -> Plan:
    """Check the job's configuration and every value of the space.

    Args:
        config: The configuration.
        origins: Places of its values.

    Raises:
        ConfigError: One line each problem.
        DataError: If a data set is damaged.
    """
    schema, options = JOBS[config.job].load_config(), config.sweep
    inner = InnerJob.read(schema, config.config, "config", origins)

    def place(key: str) -> str:
        return origins.get(f"sweep.space.{key}") or origins.get("sweep.space", "sweep.space")

    def build(values: Mapping[str, Any]) -> JobConfig:
        return inner.build(values, place)

    space = parse_space(options.space)
    check_space(schema, space, build, place)
    base = build(first_values(space))
    space = with_seeds(space, options.seeds, base.run.seed)
    trials = []
    if options.search == "random":
        listed = list_trials(space, samples=options.samples, seed=options.seed)
        trials = [Trial(trial_name(i, values), values) for i, values in enumerate(listed)]
    _check_sets([base, *(build(trial.values) for trial in trials)])
    resolved = config.model_copy(update={"config": as_mapping(base)})
    plan = Plan(resolved, base, space, trials)
    _check_search(plan)
    return plan


def _check_sets(configs: Sequence[JobConfig]) -> None:
    """Refuse data sets that the trials could not open; those that they make come later."""
    made = {option(one, "data.path") for one in configs if makes_set(one)}
    for path in {str(option(one, "data.path")) for one in configs} - made:
        find_set("config.data.path", Path(path))


def makes_set(config: JobConfig) -> bool:
    """Return whether the job makes its data set where there is none."""
    return getattr(option(config, "data"), "create", "never") != "never"


def _check_search(plan: Plan) -> None:
    """Refuse a scheduler that has nothing to go by, and a search that is not installed."""
    options, base = plan.config.sweep, plan.base
    if options.search == "optuna":
        check_optuna()
    if plan.config.cluster.workers == 0:
        if options.scheduler != "none" or options.search != "random" or plan.is_nested:
            raise ConfigError(
                "cluster.workers=0 runs one trial after another without Ray: sweep.scheduler, "
                "sweep.search=optuna and config.cluster.workers need Ray; leave it out"
            )
        return
    if options.scheduler == "none":
        return
    if not hasattr(base, "train"):
        raise ConfigError(
            f"sweep.scheduler={options.scheduler}: job={plan.config.job} has no epochs to stop "
            "after; set sweep.scheduler=none"
        )
    if options.watch.startswith("val/") and not _validates(base):
        raise ConfigError(
            f"sweep.scheduler={options.scheduler} compares {options.watch}, but the trials are not "
            "validated while they train; set config.data.validation_split (pretrain: "
            "config.validation.every_epochs), or sweep.watch=train/loss with sweep.watch_mode=min"
        )


def _validates(base: JobConfig) -> bool:
    """Return whether a training job writes ``val/`` records epoch by epoch."""
    validation = getattr(base, "validation", None)
    if validation is not None:
        return validation.every_epochs is not None
    is_reference = getattr(base, "protocol", "sound") == "reference"
    return is_reference or base.data.validation_split is not None  # type: ignore[attr-defined]
