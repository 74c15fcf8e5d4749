"""Search spaces: which values options take in the trials of a sweep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recon_ray.config.fields import scalar_text
from recon_ray.errors import ConfigError

#: Every kind of a domain; grid is run through, the others are drawn from.
KINDS = ("grid", "choice", "uniform", "loguniform", "randint")
SEED = "run.seed"
#: Options that the sweep sets itself, or that do not change what is computed.
RESERVED = ("run.name", "run.storage", "cluster.", "resume")
#: Significant digits of drawn numbers, so that they can be read and typed.
DIGITS = 5
LONGEST_NAME = 96


@dataclass(frozen=True)
class Domain:
    """Values that one option takes.

    Attributes:
        kind: One of :data:`KINDS`.
        values: The values of a grid or choice, else the two bounds, which belong to it.
    """

    kind: str
    values: tuple[Any, ...]

    @property
    def is_list(self) -> bool:
        """Return whether the values are all there are, rather than bounds."""
        return self.kind in ("grid", "choice")

    def draw(self, random: np.random.Generator) -> Any:  # noqa: ANN401 - any option's value
        """Draw one value."""
        if self.is_list:
            return self.values[int(random.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "randint":
            return int(random.integers(low, high + 1))
        if self.kind == "loguniform":
            return rounded(math.exp(random.uniform(math.log(low), math.log(high))), low, high)
        return rounded(random.uniform(low, high), low, high)


def rounded(value: float, low: float, high: float) -> float:
    """Return a drawn number in few digits, within its bounds."""
    return float(min(max(float(f"{value:.{DIGITS}g}"), low), high))


def parse_space(space: Mapping[str, object]) -> dict[str, Domain]:
    """Read ``{key: {kind: [...]}}``.

    Raises:
        ValueError: One sentence on the first domain that is wrong.
    """
    return {str(key): _domain(str(key), written) for key, written in space.items()}


def _domain(key: str, written: object) -> Domain:
    kinds = ", ".join(KINDS)
    if not isinstance(written, Mapping) or len(written) != 1 or next(iter(written)) not in KINDS:
        found = f"keys {', '.join(map(str, written))}" if isinstance(written, Mapping) else written
        raise ValueError(
            f"{key}: expected one of {kinds} with a list, as in {{grid: [1, 2]}}, found {found}; "
            "keys are written dotted"
        )
    kind, values = next(iter(written.items()))
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ValueError(f"{key}: {kind} expects a list, found {values}")
    if not values:
        raise ValueError(f"{key}: {kind} is empty; give at least one value")
    domain = Domain(str(kind), tuple(values))
    if not domain.is_list:
        _check_bounds(key, domain)
    elif len({_text(value) for value in values}) < len(values):
        raise ValueError(f"{key}: {kind} has a value twice; leave it out")
    return domain


def _check_bounds(key: str, domain: Domain) -> None:
    kind, values = domain.kind, domain.values
    wanted = int if kind == "randint" else int | float
    right = all(isinstance(v, wanted) and not isinstance(v, bool) for v in values)
    if len(values) != 2 or not right or not all(map(math.isfinite, values)):
        what = "integers" if kind == "randint" else "numbers"
        raise ValueError(f"{key}: {kind} expects two {what} [low, high], found {_text(values)}")
    if values[0] >= values[1]:
        raise ValueError(
            f"{key}: {kind} expects the lower bound first and a higher one after it, found "
            f"{_text(values)}"
        )
    if kind == "loguniform" and values[0] <= 0:
        raise ValueError(f"{key}: loguniform expects bounds above 0, found {_text(values)}")


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_text, value))}]"
    return scalar_text(value)


def check_space(
    space: Mapping[str, Domain],
    build: Callable[[Mapping[str, Any]], object],
    places: Mapping[str, str],
) -> list[Any]:
    """Refuse keys that the sweep sets itself, and every key and value that the job refuses.

    Returns:
        A configuration with each value of lists and each bound.

    Raises:
        ConfigError: One line on the first problem.
    """
    for key in space:
        if key.startswith(RESERVED):
            raise ConfigError(
                f"sweep.space.{key} ({places[key]}): is set by the sweep; leave it out"
            )
    first = first_values(space)
    return [build({**first, key: value}) for key in space for value in space[key].values]


def first_values(space: Mapping[str, Domain]) -> dict[str, Any]:
    """Return the first value, or the lower bound, of every option."""
    return {key: domain.values[0] for key, domain in space.items()}


def with_seeds(space: Mapping[str, Domain], seeds: int, first: int) -> dict[str, Domain]:
    """Add the seeds of the runs as a grid, none where there is only that of the configuration.

    Raises:
        ConfigError: If the space has seeds already.
    """
    if seeds == 1:
        return dict(space)
    if SEED in space:
        raise ConfigError(f"sweep.seeds={seeds}: sweep.space has {SEED} too; leave one of them out")
    return {**space, SEED: Domain("grid", tuple(range(first, first + seeds)))}


def count_points(space: Mapping[str, Domain]) -> float:
    """Return how many different draws there are; infinity where real numbers are drawn."""
    count = 1.0
    for domain in space.values():
        low, high = domain.values[0], domain.values[-1]
        whole = high - low + 1 if domain.kind == "randint" else math.inf
        count *= len(domain.values) if domain.is_list else whole
    return count


def is_drawn(space: Mapping[str, Domain]) -> bool:
    """Return whether anything is drawn, rather than run through."""
    return any(domain.kind != "grid" for domain in space.values())


def list_trials(space: Mapping[str, Domain], *, samples: int, seed: int) -> list[dict[str, Any]]:
    """Return the values of every trial: all points of the grids, for every draw of the rest.

    More samples add trials after the others, which stay as they are. All points of the grids (and
    so all seeds) see the same draws.
    """
    grids = {key: domain.values for key, domain in space.items() if domain.kind == "grid"}
    trials = []
    for sample in range(samples):
        random = np.random.default_rng([seed, sample])
        drawn = {key: domain.draw(random) for key, domain in space.items() if key not in grids}
        for point in itertools.product(*grids.values()):
            values = {**drawn, **dict(zip(grids, point, strict=True))}
            trials.append({key: values[key] for key in space})
    return trials


def trial_name(number: int, values: Mapping[str, Any]) -> str:
    """Return a readable name of a trial that serves as a folder: ``003_lr-0.001_seed-2``."""
    parts = [f"{number:03d}"]
    for key, value in values.items():
        parts.append(f"{key.rpartition('.')[2]}-{_text(value)}")
    text = "_".join(parts)
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text)
    return clean[:LONGEST_NAME].rstrip("-_.")
