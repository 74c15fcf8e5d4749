"""Inputs of a run by content: ``inputs.json`` holds the hashes of its sets and its weights.

Options only name places: a set that was prepared again lies where the old one did, and results of
the old one do not belong to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from recon_ray.config.sections.common import JobConfig
from recon_ray.data.format.prepared import EPISODES_RECORD
from recon_ray.data.format.schema import MANIFEST
from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.runs.folder import START_FRESH_HINT, RunFolder
from recon_ray.weights.find import hash_of_weights

INPUTS = "inputs.json"
#: Options that name a folder, and the files that describe its content.
SETS = {
    "data.path": (MANIFEST,),
    "data.episodes": (EPISODES_RECORD, MANIFEST),
    "validation.path": (MANIFEST,),
}
WEIGHTS = "init_from"


def inputs_of(config: JobConfig) -> dict[str, str]:
    """SHA-256 of every set and of the weights that a configuration names.

    A set counts by its manifest, which has the hashes of its files.

    Returns:
        Option to hash; a missing set is left out, as its reader refuses it.
    """
    found: dict[str, str] = {}
    for option, files in SETS.items():
        place = _value(config, option)
        path = next((p for p in (Path(place or "", name) for name in files) if p.is_file()), None)
        if place is not None and path is not None:
            found[option] = hashlib.sha256(path.read_bytes()).hexdigest()
    place = _value(config, WEIGHTS)
    if place is not None:
        try:
            found[WEIGHTS] = hash_of_weights(place)
        except CheckpointError:
            return found
    return found


def refuse_other_inputs(
    folder: RunFolder,
    config: JobConfig,
    inputs: Mapping[str, str],
    *,
    called: Mapping[str, str] | None = None,
) -> None:
    """Refuse to continue, or to count, a run of other sets or weights.

    Args:
        folder: The run's folder; without an ``inputs.json`` nothing is refused.
        config: Its configuration.
        inputs: The hashes now, from :func:`inputs_of`.
        called: Names of options in the message, where they differ from those of the configuration.

    Raises:
        ConfigError: Naming what has changed.
        CheckpointError: If the ``inputs.json`` of the run is damaged.
    """
    text = folder.read(INPUTS)
    if text is None:
        return
    try:
        before = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder.uri}/{INPUTS}: it is damaged; {START_FRESH_HINT}"
        ) from error
    changed = [name for name, now in inputs.items() if before.get(name, now) != now]
    if not changed:
        return
    what = "weights are" if changed[0] == WEIGHTS else "set is"
    name = (called or {}).get(changed[0], changed[0])
    raise ConfigError(
        f"{name}={_value(config, changed[0])}: the {what} no longer what {folder.uri} was begun "
        f"with (another hash than in its {INPUTS}); put back what was there, or {START_FRESH_HINT}"
    )


def _value(config: JobConfig, option: str) -> str | None:
    value: object = config
    for part in option.split("."):
        value = getattr(value, part, None)
    return None if value is None else str(value)
