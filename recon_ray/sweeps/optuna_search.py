"""Optuna's proposals as the trials of a sweep, continued from those on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from ray.tune.search import Searcher

from recon_ray.errors import ConfigError
from recon_ray.sweeps.config import SweepSection
from recon_ray.sweeps.search_space import Domain, count_points, rounded, trial_name


class OptunaSource(Searcher):
    """Source of trials whose values Optuna proposes.

    Args:
        space: The domains; the values of grids and choices are categories.
        options: Number of trials, seed of the sampler, and whether more or less is better.
        metric: Metric of ``result.json`` that is compared.
        earlier: Values and metric of the trials that are on disk; None where there is no metric.
        unfinished: Name and values of trials that were begun and are run first.

    Raises:
        ConfigError: If Optuna is not installed.
    """

    def __init__(
        self,
        space: Mapping[str, Domain],
        options: SweepSection,
        metric: str,
        *,
        earlier: Sequence[tuple[Mapping[str, Any], float | None]] = (),
        unfinished: Sequence[tuple[str, Mapping[str, Any]]] = (),
    ) -> None:
        super().__init__(metric=metric, mode=options.mode)
        optuna = import_optuna()
        self._failed = optuna.trial.TrialState.FAIL
        self._space = dict(space)
        self._distributions = {key: _distribution(optuna, d) for key, d in space.items()}
        # Another seed after a continuation, or the same proposals would come again.
        sampler = optuna.samplers.TPESampler(seed=options.seed + len(earlier))
        direction = "maximize" if options.mode == "max" else "minimize"
        self._study = optuna.create_study(sampler=sampler, direction=direction)
        create = partial(optuna.trial.create_trial, distributions=self._distributions)
        for values, value in earlier:
            if value is not None:
                self._study.add_trial(create(params=self._params(values), value=value))
        self._waiting = list(unfinished)
        self._next, self._count = len(earlier) + len(unfinished), most_trials(space, options)
        self._random = np.random.default_rng([options.seed, self._next])
        begun = [*(values for values, _ in earlier), *(values for _, values in unfinished)]
        self._tried = {_key(values) for values in begun}
        self._asked: dict[str, Any] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the next trial, or Tune's word for none."""
        if self._waiting:
            name, values = self._waiting.pop(0)
            self._study.enqueue_trial(self._params(values))
            self._asked[trial_id] = self._study.ask(self._distributions)
            return {"trial": {"name": name, "values": dict(values)}}
        if self._next >= self._count:
            return Searcher.FINISHED
        asked = self._study.ask(self._distributions)
        values = {key: self._value(key, asked.params[key]) for key in self._space}
        if _key(values) in self._tried:  # it would compute the same number again
            self._study.tell(asked, state=self._failed)
            values = self._untried()
            self._study.enqueue_trial(self._params(values))
            asked = self._study.ask(self._distributions)
        self._tried.add(_key(values))
        self._asked[trial_id] = asked
        name = trial_name(self._next, values)
        self._next += 1
        return {"trial": {"name": name, "values": values}}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna the metric of a trial, or that it failed."""
        asked = self._asked.pop(trial_id, None)
        if asked is None:
            return
        value = (result or {}).get(self.metric)
        if error or value is None:
            self._study.tell(asked, state=self._failed)
        else:
            self._study.tell(asked, float(value))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the folders of the trials are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the folders of the trials are the state."""

    def _params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values as Optuna has them: those of lists by their place."""
        return {
            key: domain.values.index(values[key]) if domain.is_list else values[key]
            for key, domain in self._space.items()
        }

    def _untried(self) -> dict[str, Any]:
        """Draw values that no trial has."""
        while True:
            values = {key: domain.draw(self._random) for key, domain in self._space.items()}
            if _key(values) not in self._tried:
                return values

    def _value(self, key: str, proposed: Any) -> Any:  # noqa: ANN401 - any option's value
        domain = self._space[key]
        if domain.is_list:
            return domain.values[int(proposed)]
        return int(proposed) if domain.kind == "randint" else rounded(proposed, *domain.values)


def most_trials(space: Mapping[str, Domain], options: SweepSection) -> int:
    """Return how many trials there are: the samples, as far as the space has different ones."""
    return int(min(options.samples, count_points(space)))


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), sort_keys=True, default=str)


def import_optuna() -> Any:  # noqa: ANN401 - a module
    """Import Optuna.

    Raises:
        ConfigError: If it is not installed; names what to install.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "sweep.search=optuna: Optuna is not installed; pip install 'recon-ray[search]', or "
            "set sweep.search=random"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(optuna: Any, domain: Domain) -> Any:  # noqa: ANN401 - Optuna's classes
    made = optuna.distributions
    if domain.is_list:
        return made.CategoricalDistribution(tuple(range(len(domain.values))))
    if domain.kind == "randint":
        return made.IntDistribution(*domain.values)
    return made.FloatDistribution(*domain.values, log=domain.kind == "loguniform")
