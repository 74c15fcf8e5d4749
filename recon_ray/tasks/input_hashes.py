"""Hashes of the sets and the weights that a run reads, in its ``inputs.json``.

Options only name places. A set that was prepared again, or weights that were trained again, have
the place of the old ones, but results of the old ones do not belong to them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from recon_ray.config.sections.common import JobConfig
from recon_ray.data.format.prepared import EPISODES_RECORD, manifest_of
from recon_ray.data.format.schema import MANIFEST
from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.runs.folder import START_FRESH_HINT, RunFolder
from recon_ray.storage import Place
from recon_ray.weights.find import hash_of_weights

INPUTS = "inputs.json"
#: Options that name a folder, and the files that identify its content.
SETS = {
    "data.path": (MANIFEST,),
    "data.episodes": (EPISODES_RECORD, MANIFEST),
    "validation.path": (MANIFEST,),
}
WEIGHTS = "init_from"


def inputs_of(config: JobConfig) -> dict[str, str]:
    """Return the SHA-256 of every set and of the weights that a configuration names, by option.

    A set counts by its manifest, which has the hashes of its files. A missing set or file is left
    out; reading it is refused elsewhere.
    """
    found: dict[str, str] = {}
    for option, files in SETS.items():
        place = _value(config, option)
        version = _value(config, "data.version") if option == "data.path" else None
        names = files if version is None else (manifest_of(int(version)), *files)
        for content in () if place is None else _contents(Place.of(place), names):
            found[option] = hashlib.sha256(content).hexdigest()
            break
    place = _value(config, WEIGHTS)
    if place is not None:
        with suppress(CheckpointError):
            found[WEIGHTS] = hash_of_weights(place)
    return found


def _contents(folder: Place, names: Iterable[str]) -> Iterator[bytes]:
    for name in names:
        with suppress(OSError, ValueError):
            yield (folder / name).read_bytes()


def refuse_other_inputs(
    folder: RunFolder,
    config: JobConfig,
    inputs: Mapping[str, str],
    *,
    called: Mapping[str, str] | None = None,
) -> None:
    """Refuse to continue or count a run whose sets or weights have changed.

    Args:
        folder: The run's folder; without an ``inputs.json`` nothing is refused.
        config: Its configuration.
        inputs: Hashes of now, from :func:`inputs_of`.
        called: Other names of options for the message.

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


def same_inputs(folder: RunFolder, inputs: Mapping[str, str]) -> set[str]:
    """Return the options whose sets or weights are those that a run was begun with."""
    try:
        before = dict(json.loads(folder.read(INPUTS) or "{}"))
    except (ValueError, TypeError):
        return set()  # refused by :func:`refuse_other_inputs`
    return {name for name, digest in inputs.items() if before.get(name) == digest}


def _value(config: JobConfig, option: str) -> str | None:
    value: object = config
    for part in option.split("."):
        value = getattr(value, part, None)
    return None if value is None else str(value)
