"""Files of weights: our safetensors, plain state dicts, the reference's ``.pth``.

Files are unpickled with ``weights_only``: they can hold data and no code. The reference stores its
metrics as numpy's numbers, which are read by classes of ours.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from recon_ray.errors import CheckpointError
from recon_ray.models.cloud import CloudModel
from recon_ray.models.presets import kind_of, whole_arguments
from recon_ray.weights.adapters import from_reference, to_reference
from recon_ray.weights.architecture import (
    NOT_IN_SHAPES,
    identify,
    identify_reference,
    infer,
    published_habits,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT = "recon_ray 2"
"""Value of ``format`` in the metadata of our safetensors files."""
GUESSING_FORMAT = "recon_ray 1"
"""Earlier value; such files of converted weights hold a guessed number of heads."""
RECORD = "recon_ray"
"""Entry of a ``.pth`` file of ours with kind, architecture and records, as JSON."""
WRAPPER = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")
"""Prefixes that parallel and compiled wrappers put into names."""
OWN_KEY = re.compile(r"(?:^|(?<=\.))encoder\.embed\.fc1\.weight$")
"""Name of a weight that every model of ours has, behind the prefixes of wrappers."""
TEACHER_PREFIXES = ("img_encoder.", "text_encoder.")
"""Full pre-training files also hold the frozen teachers, which are never imported."""
SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class LoadedWeights:
    """Weights in our names, from any source.

    Attributes:
        kind: Kind of model (:data:`recon_ray.models.presets.MODELS`), or ``pointmae``.
        architecture: Known constructor arguments.
        origins: Origin of those that shapes do not determine: the file, options, published weights.
        state: Our names to tensors, on the CPU.
        source: Their origin, for messages.
        renamed: Our name to the file's, where a file has other names.
        unknown: Names of the file without a rule.
        dropped: Names of the frozen teachers in the file, which are left out.
        extra: Further records of the file (epoch, metrics), plain data.
    """

    kind: str
    architecture: dict[str, Any]
    state: dict[str, Tensor]
    source: str
    renamed: dict[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def with_sizes(self, **sizes: Any) -> LoadedWeights:  # noqa: ANN401
        """Return the same weights with constructor arguments of the user; None is left out.

        Raises:
            CheckpointError: If the number of heads is not the one that they were trained with.
        """
        given = {name: value for name, value in sizes.items() if value is not None}
        refuse_other_heads(self, given)
        changed = {n: "options" for n, v in given.items() if self.architecture.get(n) != v}
        return replace(
            self,
            architecture={**self.architecture, **given},
            origins={**self.origins, **changed},
        )

    def with_published(
        self, name: str, sizes: Mapping[str, Any], records: Mapping[str, Any]
    ) -> LoadedWeights:
        """Return these weights, with missing sizes and records taken from published ones."""
        added = {key: value for key, value in sizes.items() if key not in self.architecture}
        return replace(
            self,
            architecture={**self.architecture, **added},
            extra={**records, **self.extra},
            origins={**self.origins, **dict.fromkeys(added, name)},
        )

    @property
    def sizes(self) -> dict[str, Any]:
        """Known constructor arguments that shapes do not determine; workers receive them."""
        known = self.architecture
        return {name: known[name] for name in NOT_IN_SHAPES if name in known}

    def described(self) -> str:
        """Return those with their origins, in a line."""
        sizes = [f"{n}={v} ({self.origins.get(n, 'file')})" for n, v in self.sizes.items()]
        return f"{self.source}: {self.kind}, {', '.join(sizes)}"


def refuse_other_heads(weights: LoadedWeights, arguments: Mapping[str, Any]) -> None:
    """Refuse another number of attention heads than the weights were trained with.

    Raises:
        CheckpointError: Naming both numbers.
    """
    known, asked = weights.architecture.get("num_heads"), arguments.get("num_heads")
    if None not in (known, asked) and known != asked:
        raise CheckpointError(
            f"{weights.source}: it was trained with num_heads={known}, but num_heads={asked} "
            "(model.num_heads or model.preset) was asked for; leave that out"
        )


# --- Reading --------------------------------------------------------------------------------------


def read_file(path: str | Path) -> LoadedWeights:
    """Read a safetensors file, or a torch file of the reference or of Point-MAE.

    Raises:
        CheckpointError: If the file is missing, damaged, holds code, or another family of models.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give a .safetensors or .pth file of weights")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return read_checkpoint(_read_torch(path), source=str(path))


def read_checkpoint(checkpoint: Mapping[str, Any], *, source: str) -> LoadedWeights:
    """Read the content of a ``.pth`` file: names of the reference, or our own in any wrapper.

    Args:
        checkpoint: State dict, or a mapping that holds one.
        source: Its origin, for messages.

    Raises:
        CheckpointError: If there are no weights, or those of another family.
    """
    with _naming(source):
        state, dropped = strip_reference(checkpoint)
        own = next((key for key in state if OWN_KEY.search(key)), None)
        if own is None:
            kind = identify_reference(state)
            ours, renamed, unknown = from_reference(state, kind)
            architecture = published_habits(kind)
        else:
            prefix = own[: OWN_KEY.search(own).start()]  # type: ignore[union-attr]
            named = {key.removeprefix(prefix): key for key in state if key.startswith(prefix)}
            ours = {name: state[key] for name, key in named.items()}
            unknown = tuple(key for key in state if not key.startswith(prefix))
            renamed = {name: key for name, key in named.items() if name != key}
            kind, architecture = identify(ours), {}
        shapes = infer(kind, ours)
    extra = {k: v for k, v in checkpoint.items() if isinstance(v, str | int | float | bool)}
    record = json.loads(str(extra.pop(RECORD, "{}")))
    architecture |= record.get("architecture", {}) | shapes
    extra |= record.get("extra", {})
    return LoadedWeights(kind, architecture, ours, source, renamed, unknown, dropped, extra)


def from_own(
    state: Mapping[str, Tensor], architecture: Mapping[str, Any], *, source: str
) -> LoadedWeights:
    """Wrap a state dict of one of our models with its constructor arguments.

    Those that are not recorded had their defaults.

    Raises:
        CheckpointError: If it is of no model of this package.
    """
    with _naming(source):
        kind = identify(state)
    return LoadedWeights(kind, whole_arguments(kind, architecture), dict(state), source)


def strip_reference(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the bare state dict of a reference checkpoint and the names of its teachers' weights.

    The state dict may lie under ``model`` (preferred), ``base_model``, ``model_state_dict`` or
    ``state_dict``, or be the mapping itself; the prefixes of wrappers are removed.

    Raises:
        CheckpointError: If there are no tensors in it.
    """
    state: Mapping[str, Any] = checkpoint
    for key in ("model", "base_model", "model_state_dict", "state_dict"):
        if isinstance(checkpoint.get(key), Mapping):
            state = checkpoint[key]
            break
    tensors = {
        WRAPPER.sub("", str(key)).removeprefix("base_model."): value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise CheckpointError(
            "no weights found: expected a state dict, or one under 'model' or 'base_model', found "
            f"the keys {', '.join(map(repr, list(checkpoint)[:5])) or 'none'}"
        )
    dropped = tuple(key for key in tensors if key.startswith(TEACHER_PREFIXES))
    return {key: tensors[key] for key in tensors if key not in set(dropped)}, dropped


class _NumberType:
    """Replacement of ``numpy.dtype`` in a pickle, for integers, floats and booleans only.

    Args:
        code: Kind and size, such as ``f8``.
        flags: numpy's ``align`` and ``copy``; not used.
    """

    def __init__(self, code: str, *flags: bool) -> None:
        del flags
        if not (isinstance(code, str) and re.fullmatch(r"b1|[iu][1248]|f[248]", code)):
            raise pickle.UnpicklingError(f"no number type: {code!r}")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Set the byte order from numpy's state."""
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"no byte order: {order!r}")
        self.code = f"{order}{self.code}"


def _number(kind: _NumberType, content: bytes) -> float:
    """Read one of numpy's numbers as a plain one; replacement of its ``scalar``."""
    if not isinstance(kind, _NumberType):
        raise pickle.UnpicklingError("a number without number type")
    (number,) = np.frombuffer(content, dtype=kind.code).tolist()
    return number


#: Replacements of numpy's functions in a pickle, and the names of these before and since numpy 2; a
#: file calls nothing of numpy itself.
NUMBERS: list[Any] = [
    _NumberType,
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def _read_torch(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals(NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises almost anything on a damaged file
        # torch's own message recommends to load the file without this protection: not passed on.
        found = re.search(r"GLOBAL (\w+(?:\.\w+)+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and found:
            raise CheckpointError(
                f"{path}: it holds more than plain data ({found[1]}) and is refused, since loading "
                "it could run code; give a file with weights only"
            ) from error
        raise CheckpointError(
            f"{path}: it cannot be read as a weights file ({type(error).__name__}); it is damaged "
            "or of another format, give the file as published"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: it holds a {type(content).__name__}, expected a dict of weights"
        )
    return content


def _read_safetensors(path: Path) -> LoadedWeights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: it cannot be read as a safetensors file ({str(error).splitlines()[0]}); it "
            "is damaged or of another format"
        ) from error
    if "architecture" not in metadata:  # the reference's names in another container
        return read_checkpoint(state, source=str(path))
    if metadata.get("format") not in (FORMAT, GUESSING_FORMAT):
        raise CheckpointError(
            f"{path}: weights format {metadata.get('format')!r}, this version reads {FORMAT!r}"
        )
    extra = json.loads(metadata.get("extra", "{}"))
    kind, architecture = metadata["kind"], json.loads(metadata["architecture"])
    if metadata["format"] == GUESSING_FORMAT:
        if Path(str(extra.get("source", ""))).suffix in SUFFIXES:
            architecture.pop("num_heads", None)
        else:  # of a run, which left defaults out
            architecture = whole_arguments(kind, architecture)
    return LoadedWeights(kind, architecture, state, str(path), extra=extra)


# --- Writing --------------------------------------------------------------------------------------


def save_model(
    model: nn.Module, path: str | Path, *, records: Mapping[str, Any] | None = None
) -> None:
    """Write a model with everything that :func:`recon_ray.load_model` needs to make it again.

    Args:
        model: One of :data:`recon_ray.models.presets.MODELS`.
        path: File to write (``.safetensors``); complete or not there at all.
        records: Plain data that goes with it (``num_points``, ``classes``).

    Raises:
        CheckpointError: If the file cannot be written, or its name does not end in .safetensors.
        TypeError: If the model is of another class.
    """
    kind = kind_of(model)
    if Path(path).suffix != ".safetensors":
        raise CheckpointError(f"{path}: the file name must end in .safetensors")
    assert isinstance(model, CloudModel)
    save_weights(path, model.state_dict(), kind=kind, architecture=model.arguments, extra=records)


def save_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    *,
    kind: str,
    architecture: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a safetensors file with the kind and the sizes of its model.

    Args:
        path: File to write; complete or not there at all.
        state: State dict of one of our models.
        kind: Kind of model.
        architecture: Its constructor arguments.
        extra: Further records, plain data (the origin of the weights).

    Raises:
        CheckpointError: If the file cannot be written.
    """
    from safetensors.torch import save_file

    metadata = {
        "format": FORMAT,
        "kind": kind,
        "architecture": json.dumps(dict(architecture)),
        "extra": json.dumps(dict(extra or {})),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with _replacing(Path(path)) as target:
        save_file(tensors, target, metadata=metadata)


def save_reference(path: str | Path, weights: LoadedWeights) -> None:
    """Write weights with the reference's names and layout, for its own programs.

    Architecture and records lie beside them, where those programs do not look. The file is complete
    or not there at all.

    Raises:
        CheckpointError: If a weight has no name there, or the file cannot be written.
    """
    state = to_reference(weights.state, weights.kind)
    key = "model_state_dict" if weights.kind == "partseg" else "base_model"
    with _replacing(Path(path)) as target:
        tensors = {name: value.contiguous() for name, value in state.items()}
        record = {"architecture": weights.architecture, "extra": weights.extra}
        torch.save({key: tensors, RECORD: json.dumps(record)}, target)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Return a name beside ``path`` to write to; the complete file is renamed to ``path``."""
    from safetensors import SafetensorError

    partial = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises RuntimeError
        raise CheckpointError(
            f"{path}: it could not be written ({str(error).splitlines()[0]}); free space or choose "
            "another output"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Put the name of the file in front of an error about its content."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
