"""Files of teacher weights: found, hashed and read."""

from __future__ import annotations

import hashlib
import logging
import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from recon_ray.data.format.files import file_sha256
from recon_ray.errors import TeacherError, TeacherNameError
from recon_ray.teachers.specification import GELU, Specification, parse_source

logger = logging.getLogger(__name__)

#: Ways to have a teacher without a connection to a model hub; ends error messages.
WAY_OUT = "give a local file of the weights in the teacher's name, or use the teacher 'descriptor'"

#: Entries of OpenAI's published TorchScript archives beside the weights.
ARCHIVE_EXTRAS = frozenset({"input_resolution", "context_length", "vocab_size"})


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights.

    Attributes:
        path: The file.
        tag: Published tag of the weights, or the file's name.
        sha256: Hash of the file's bytes.
        is_gelu: Whether the specification states that their model uses GELU.
    """

    path: Path
    tag: str
    sha256: str
    is_gelu: bool = False


@dataclass(frozen=True)
class Weights:
    """A state dict as it was read.

    Attributes:
        state: Name to tensor, on the CPU, floating point tensors in float32.
        is_archive: Whether the file was one of OpenAI's TorchScript archives.
    """

    state: dict[str, Tensor]
    is_archive: bool = False


def find_weights_file(
    specification: Specification,
    tags: Collection[str],
    default: str | None,
    download: Callable[[str], Path],
    *,
    sha256: str | None,
) -> WeightsFile:
    """Find the file of weights that a specification names, or fetch the published one.

    Args:
        specification: The teacher.
        tags: Published tags of its architecture.
        default: Tag where the specification names no weights; None for none.
        download: Fetches the file of a tag, or finds it in the hub's cache on this machine.
        sha256: Hash that the file must have.

    Raises:
        TeacherError: If tag or file are unknown, the hub cannot be reached, or the hash differs.
    """
    tag, path = parse_source(specification, tags)
    if path is None:
        tag = tag or default
        if tag is None:
            raise TeacherNameError(
                f"Teacher {specification.text!r} names no weights; add a tag "
                f"({', '.join(tags) or 'none is published'}) or a file."
            )
        path = _fetch(specification, tag, download)
    found = file_sha256(path)
    check_pin(specification.name, found, sha256)
    is_gelu = tag == GELU
    return WeightsFile(path, path.name if tag is None or is_gelu else tag, found, is_gelu)


def _fetch(specification: Specification, tag: str, download: Callable[[str], Path]) -> Path:
    """Download weights, without the hub's warning of every failed attempt."""
    text, hub = specification.text, logging.getLogger("huggingface_hub")
    logger.info("fetching %s; without a connection that is given up within a minute", text)
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        return download(tag)
    except Exception as error:  # hub, proxy or disk: many kinds of failure, one way out
        raise TeacherError(
            f"Teacher {text!r}: the weights {tag!r} could not be fetched "
            f"({type(error).__name__}); {WAY_OUT}."
        ) from error
    finally:
        hub.setLevel(level)


def check_pin(name: str, found: str, expected: str | None) -> None:
    """Compare the hash of a teacher's weights with the pinned one.

    Raises:
        TeacherError: If they differ; the message has both.
    """
    if expected is not None and found != expected.strip().lower():
        raise TeacherError(
            f"Teacher {name}: its weights have sha256 {found}, but {expected} is pinned; "
            "give the pinned weights or change the pin."
        )


def state_dict_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash a state dict in a canonical order: for each sorted name its name, type, shape, bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_weights(path: Path) -> Weights:
    """Read a state dict from a safetensors file, a torch file or a TorchScript archive.

    Torch files are read with ``weights_only``: nothing in them can run code. Wrappers
    (``state_dict``, ``model``) and a ``module.`` prefix are taken off.

    Raises:
        TeacherError: If the file cannot be read as one of these.
    """
    from safetensors import SafetensorError

    unreadable = (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError)
    try:
        loaded, is_archive = _read(path)
    except (*unreadable, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise TeacherError(
            f"Teacher weights {path} cannot be read as a safetensors or torch state dict "
            f"({reason}); give the file as published."
        ) from error
    state = _unwrap(loaded, path)
    extras = ARCHIVE_EXTRAS & state.keys()
    floats = {n: t.float() if t.is_floating_point() else t for n, t in state.items()}
    return Weights(
        {name: tensor for name, tensor in floats.items() if name not in extras},
        is_archive=is_archive or bool(extras),
    )


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, name: str, path: str) -> None:
    """Load a state dict that must fit exactly.

    Raises:
        TeacherError: If a name is missing or unknown, or a shape differs.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    wrong = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or unknown or wrong:
        example = (missing or unknown or wrong)[0]
        raise TeacherError(
            f"Teacher weights {path} do not fit {name}: {len(missing)} tensors missing, "
            f"{len(unknown)} unknown, {len(wrong)} of another shape (first: {example}); "
            "name the architecture that the weights belong to."
        )
    module.load_state_dict(dict(state))


def _read(path: Path) -> tuple[object, bool]:
    """Load the content of a file; also return whether it is a TorchScript archive."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path), False
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            is_script = any(name.endswith("/constants.pkl") for name in archive.namelist())
        if is_script:
            return torch.jit.load(str(path), map_location="cpu").state_dict(), True
    return torch.load(path, map_location="cpu", weights_only=True), False


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded:
        raise TeacherError(
            f"Teacher weights {path} hold no state dict; give the file as published."
        )
    state = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state
