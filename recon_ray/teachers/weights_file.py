"""Reads and identifies files of teacher weights."""

from __future__ import annotations

import hashlib
import logging
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from recon_ray.errors import TeacherError

logger = logging.getLogger(__name__)

WAY_OUT = "give a local file of the weights in the teacher's name, or use the teacher 'descriptor'"
"""What a user without a connection to a model hub can do; ends error messages."""

# What OpenAI's published TorchScript archives hold beside the weights.
ARCHIVE_EXTRAS = frozenset({"input_resolution", "context_length", "vocab_size"})


@contextmanager
def fetching(weights: str) -> Iterator[None]:
    """Say that weights are fetched, and keep the hub's warning of every failed attempt to itself.

    Args:
        weights: What is fetched.
    """
    logger.info("fetching %s; without a connection that is given up within a minute", weights)
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(level)


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights and where its name came from.

    Attributes:
        path: Where the file lies.
        tag: Published tag of the weights, or the file's name.
        sha256: Hash of the file's bytes.
    """

    path: Path
    tag: str
    sha256: str


@dataclass(frozen=True)
class Weights:
    """A state dict as it was read.

    Attributes:
        state: Name to tensor, on the CPU, floating point tensors in float32.
        is_archive: Whether the file was one of OpenAI's TorchScript archives.
    """

    state: dict[str, Tensor]
    is_archive: bool = False


def file_sha256(path: Path) -> str:
    """Hash a file's bytes; 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def state_dict_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash a state dict in a canonical order: for each sorted name its name, type, shape, bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def identify(path: Path, tag: str) -> WeightsFile:
    """Hash a local file of weights.

    Raises:
        TeacherError: If there is no such file.
    """
    if not path.is_file():
        raise TeacherError(f"Teacher weights {path}: there is no such file; {WAY_OUT}.")
    return WeightsFile(path=path, tag=tag, sha256=file_sha256(path))


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
        raise TeacherError(
            f"Teacher weights {path} cannot be read as a safetensors or torch state dict "
            f"({_first_line(error)}); give the file as published."
        ) from error
    state = _unwrap(loaded, path)
    extras = ARCHIVE_EXTRAS & state.keys()
    return Weights(
        state={
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
            if name not in extras
        },
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
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path), False
    if _is_torchscript(path):
        return torch.jit.load(str(path), map_location="cpu").state_dict(), True
    return torch.load(path, map_location="cpu", weights_only=True), False


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
