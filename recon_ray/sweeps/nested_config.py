"""The options of one job that another job's configuration holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon_ray.config.loader import assemble
from recon_ray.config.sections.common import JobConfig
from recon_ray.errors import ConfigError


@dataclass(frozen=True)
class InnerJob:
    """The options of a job as they were written, and where.

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
        """Take the options apart.

        Args:
            schema: Root model of the job.
            options: What the outer configuration holds.
            key: Its key there (``config``).
            origins: Places of the outer configuration's values.

        Raises:
            ConfigError: If ``include`` is no list of files.
        """
        written = dict(options)
        place = f"{key}.include"
        files = _included(written.pop("include", None), place, origins.get(place, ""))
        places = {name: origins.get(f"{key}.{name}", key) for name in written}
        return cls(schema, files, written, places)

    def build(
        self, values: Mapping[str, Any], place: Callable[[str], str] | None = None
    ) -> JobConfig:
        """Make the configuration with further values, which win over what was written.

        Args:
            values: The values by dotted key.
            place: Where they come from; what was overridden by default.

        Raises:
            ConfigError: Everything that is wrong, one line each.
        """
        kept = {key: value for key, value in self.written.items() if key not in values}
        places = dict(self.places) | ({key: place(key) for key in values} if place else {})
        return assemble(self.schema, self.files, {**kept, **values}, origins=places).config


def option(config: JobConfig, key: str) -> Any:  # noqa: ANN401 - any option's value
    """Return an option by its dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _included(include: object, key: str, origin: str) -> tuple[Path, ...]:
    """Files that ``include`` names, relative to the file that does."""
    names = include if isinstance(include, list | tuple) else [] if include is None else [include]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{key} ({origin}): expected a list of YAML files")
    file, _, line = origin.rpartition(":")
    folder = Path(file).parent if line.isdigit() else Path()
    return tuple(folder / str(name) for name in names)
