"""Search for weights by run, checkpoint, file or published name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from recon_ray.data.format.files import file_sha256
from recon_ray.errors import CheckpointError, NoWeightsError
from recon_ray.runs.checkpoint import MANIFEST, MODEL_FILE, CheckpointStore, place_of
from recon_ray.runs.folder import RunFolder
from recon_ray.storage import absolute, is_uri, split
from recon_ray.weights.catalog import CATALOG, find_published
from recon_ray.weights.weight_files import LoadedWeights, from_own, read_file


def find_weights(
    spec: str | Path,
    *,
    folder: str | Path | None = None,
    published: str | None = None,
    **sizes: Any,  # noqa: ANN401 - constructor arguments
) -> LoadedWeights:
    """Read weights.

    Args:
        spec: A run folder, its ``checkpoints`` or one ``step-<number>`` in it (folder or URI), a
            file of weights, or a name of :data:`recon_ray.weights.catalog.CATALOG`.
        folder: Folder of published weights; ``RECON_WEIGHTS`` by default.
        published: Name of published weights whose sizes the file has, unless it records its own.
        sizes: Constructor arguments in addition to those of the file; None leaves the file's.

    Raises:
        NoWeightsError: If there are no such weights.
        CheckpointError: If they cannot be read, or were trained with other ``num_heads``.
    """
    text = str(spec)
    if is_uri(text) or Path(text).is_dir():
        weights = _from_run(text)
    elif Path(text).is_file():
        path = Path(text)
        in_checkpoint = path.name == MODEL_FILE and (path.parent / MANIFEST).is_file()
        weights = _from_run(str(path.parent)) if in_checkpoint else read_file(path)
    elif text in CATALOG or ("/" not in text and not Path(text).suffix):
        published, weights = text, read_file(find_published(text, folder))
    else:
        raise NoWeightsError(
            f"{text}: there is no such file or folder; give a run folder, a checkpoint in it, a "
            ".safetensors or .pth file, or a name of published weights"
        )
    if published is not None:
        known = CATALOG[published]
        weights = weights.with_published(published, known.sizes, {"num_points": known.num_points})
    return weights.with_sizes(**sizes)


def load_start(
    spec: str,
    *,
    published: str | None = None,
    **sizes: Any,  # noqa: ANN401 - constructor arguments
) -> tuple[str, LoadedWeights]:
    """Read the weights that ``init_from`` names; also return their absolute place, for workers.

    The arguments and errors are :func:`find_weights`'s.
    """
    weights = find_weights(spec, published=published, **sizes)
    is_name = spec in CATALOG and not Path(spec).exists()
    return absolute(str(find_published(spec)) if is_name else spec), weights


def hash_of_weights(spec: str | Path) -> str:
    """Return a SHA-256 of the content of weights, without reading those of a run.

    Raises:
        CheckpointError: If there are no such weights; see :func:`find_weights`.
    """
    text = str(spec)
    if is_uri(text) or Path(text).is_dir():
        store, name = place_of(text)
        name = name or store.selected()
        if name is None:
            raise _no_checkpoint(text)
        return store.hash_of_model(name)
    path = Path(text) if Path(text).is_file() else find_published(text)
    try:
        state = path.stat()
        return _hash_of_file(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{path}: it cannot be read ({error.strerror})") from error


@lru_cache(maxsize=8)
def _hash_of_file(path: Path, size: int, modified: int) -> str:
    return file_sha256(path)


def _from_run(path: str) -> LoadedWeights:
    """Load the checkpoint in a folder: itself, or the best validated one, or else the latest."""
    store, name = place_of(path.rstrip("/"))
    found = store.load_selected() if name is None else store.load(name)
    if found is None:
        raise _no_checkpoint(path.rstrip("/"))
    weights = from_own(found.model, found.architecture, source=f"{path} ({found.name})")
    records = found.records if "num_points" in found.records else _old_records(store)
    return replace(weights, extra={**records, **found.records})


def _old_records(store: CheckpointStore) -> dict[str, Any]:
    """Return the records of a run whose checkpoints have none, by its configuration."""
    try:
        text = RunFolder(split(store.uri)[0]).read("config.yaml")
        config = yaml.safe_load(text or "{}")
        return training_records(config["data"], config.get("teacher", {}))
    except (CheckpointError, OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return {}


def training_records(
    data: Mapping[str, Any], teachers: Mapping[str, Any], *, up_axis: str | None = None
) -> dict[str, Any]:
    """Return what later jobs take over from a training: how its clouds and texts were made.

    Args:
        data: Its section ``data``, as plain data.
        teachers: Its section ``teacher``.
        up_axis: Axis that pointed up in the files of its set.
    """
    normalize = data.get("normalize")
    if isinstance(normalize, bool):
        normalize = "subset" if normalize else "none"
    records = {
        "num_points": data["num_points"],
        "normalize": None if normalize == "auto" else normalize,
        "text": data.get("text"),
        "up_axis": up_axis,
        **{f"{side}_teacher": (teachers.get(side) or {}).get("name") for side in ("image", "text")},
    }
    return {name: value for name, value in records.items() if value is not None}


def _no_checkpoint(path: str) -> CheckpointError:
    return NoWeightsError(
        f"{path}: no checkpoint there; give a run folder or <run>/checkpoints/step-<number>"
    )
