"""Search for weights by run, checkpoint, file or published name."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from recon_ray.data.format.files import file_sha256
from recon_ray.errors import CheckpointError
from recon_ray.runs.checkpoint import place_of
from recon_ray.runs.storage import absolute, is_uri
from recon_ray.weights.catalog import CATALOG, find_published
from recon_ray.weights.weight_files import LoadedWeights, from_own, read_file


def find_weights(
    spec: str | Path,
    *,
    folder: str | Path | None = None,
    **sizes: Any,  # noqa: ANN401 - constructor arguments
) -> LoadedWeights:
    """Read weights.

    Args:
        spec: A run folder, its ``checkpoints`` or one ``step-<number>`` in it (folder or URI), a
            file of weights, or a name of :data:`recon_ray.weights.catalog.CATALOG`.
        folder: Folder of published weights; ``RECON_WEIGHTS`` by default.
        sizes: Constructor arguments in addition to those of the file; None leaves the file's.

    Raises:
        CheckpointError: If there are no such weights, or they cannot be read.
    """
    text = str(spec)
    if is_uri(text) or Path(text).is_dir():
        weights = _from_run(text)
    elif Path(text).is_file():
        weights = read_file(text)
    elif text in CATALOG or ("/" not in text and not Path(text).suffix):
        weights = read_file(find_published(text, folder)).with_sizes(**CATALOG[text].sizes)
    else:
        raise CheckpointError(
            f"{text}: there is no such file or folder; give a run folder, a checkpoint in it, a "
            ".safetensors or .pth file, or a name of published weights"
        )
    return weights.with_sizes(**sizes)


def load_start(spec: str, **sizes: Any) -> tuple[str, LoadedWeights]:  # noqa: ANN401
    """Read the weights that ``init_from`` names; also return their absolute place, for workers.

    Args:
        spec: See :func:`find_weights`.
        sizes: Constructor arguments that the shapes in a file do not show.

    Raises:
        CheckpointError: If there are no such weights, or they cannot be read.
    """
    published = spec in CATALOG and not Path(spec).exists()
    place = str(find_published(spec)) if published else spec
    known = CATALOG[spec].sizes if published else {}
    return absolute(place), find_weights(place).with_sizes(**known).with_sizes(**sizes)


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
    return replace(weights, extra=found.records)


def _no_checkpoint(path: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: no checkpoint there; give a run folder or <run>/checkpoints/step-<number>"
    )
