"""Checkpoints: complete, verified, and the same with and without Ray.

Layout of one checkpoint, under the run's ``checkpoints`` folder::

    step-00000100/model.pt       state dict of the model, for downstream use
                  train.pt       optimizer, progress, metrics, to continue the run; of a finished
                                 run that is not to be continued progress.pt, without optimizer
                  MANIFEST.json  format, step, architecture, records of the task, and size and
                                 SHA-256 of each file

    best.json            the checkpoint with the best validation, if any
    recent.json          on an object store: names of the newest checkpoints

The manifest is written last and a folder gets its final name only when it is complete (on an object
store, which cannot rename, a folder without manifest does not count). Every file loads with
``weights_only=True``.

A commit, and finding the newest checkpoint, cost the same for any number of kept ones: a run knows
what it may have to delete, and an object store is not listed as long as ``recent.json`` names a
checkpoint that is whole. A name is written there before its checkpoint is.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pyarrow import fs as pafs

from recon_ray.errors import CheckpointError
from recon_ray.storage import (
    absolute,
    exists,
    join,
    open_filesystem,
    split,
    with_retries,
)

logger = logging.getLogger(__name__)

MANIFEST = "MANIFEST.json"
BEST, RECENT = "best.json", "recent.json"
MODEL_FILE, TRAIN_FILE, PROGRESS_FILE = "model.pt", "train.pt", "progress.pt"

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint, loaded on the CPU.

    Attributes:
        name: Folder name, ``step-<number>``.
        step: Optimizer steps behind it.
        architecture: Constructor arguments of the model.
        model: State dict of the model.
        train: State of the optimizer, unless that was dropped, the progress and the metrics.
        records: Plain data of the task that goes with the model (its classes).
    """

    name: str
    step: int
    architecture: dict[str, Any]
    model: dict[str, torch.Tensor]
    train: dict[str, Any]
    records: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """The files of a checkpoint as they are stored, compared with its manifest.

    Attributes:
        path: Its folder, for messages.
        manifest: What ``MANIFEST.json`` holds.
        files: File name to content.
    """

    path: str
    manifest: Mapping[str, Any]
    files: Mapping[str, bytes]

    def loaded(self) -> Checkpoint:
        """Load the checkpoint on the CPU.

        Raises:
            CheckpointError: If a weight is not finite.
        """
        loaded = {
            file: torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
            for file, blob in self.files.items()
        }
        model = loaded[MODEL_FILE]
        if bad := not_finite(model):
            raise CheckpointError(
                f"{self.path}/{MODEL_FILE}: {len(bad)} of {len(model)} weights are not finite "
                f"({_some(bad)})"
            )
        return Checkpoint(
            self.path.rpartition("/")[2],
            self.manifest["step"],
            self.manifest["architecture"],
            model,
            loaded[TRAIN_FILE if TRAIN_FILE in loaded else PROGRESS_FILE],
            self.manifest.get("records", {}),
        )


class CheckpointStore:
    """Reads and writes the checkpoints of one run in a folder or URI.

    Args:
        uri: The run's ``checkpoints`` folder.
        keep: Newest checkpoints that :meth:`save` keeps, besides the best one.
        keep_every: Interval in steps of further checkpoints to keep, None for none.
    """

    def __init__(self, uri: str, *, keep: int = 3, keep_every: int | None = None) -> None:
        self.uri = uri
        self.keep = keep
        self.keep_every = keep_every
        self._fs, self._root = open_filesystem(uri)
        #: Whether it is a folder; object stores cannot rename, and failed calls are repeated.
        self.is_local = isinstance(self._fs, pafs.LocalFileSystem)
        self._intact: set[str] = set()  # loaded before, and so compared with their manifests
        #: Complete ones that retention has not decided on for good, oldest first; None before a
        #: commit of this process.
        self._recent: list[str] | None = None

    def path(self, name: str) -> str:
        """Return the path of a checkpoint inside the store's file system."""
        return f"{self._root}/{name}"

    @property
    def filesystem(self) -> pafs.FileSystem:
        """Return the file system that :meth:`path` refers to."""
        return self._fs

    def write(self, packed: Packed) -> None:
        """Write a checkpoint, unless it is there and whole; delete those that need not stay.

        Raises:
            CheckpointError: If the storage refuses, a full disk for example; older ones stay.
        """
        path = self.path(packed.name)
        try:
            if not self._holds(packed.name):
                self._announce(packed.name)
                self._steadily(lambda: self._save(packed))
            if packed.best is not None:
                path, best = self.path(BEST), packed.best
                self._steadily(lambda: self._mark(best))
        except OSError as error:
            raise CheckpointError(
                f"{path}: the checkpoint could not be written ({error}); free space or choose "
                "another run.storage, then start the same run again: it continues from the "
                "checkpoint before"
            ) from error
        self._retain(packed)

    def _holds(self, name: str) -> bool:
        """Return whether a checkpoint is there and whole."""
        if not self._is_there(f"{name}/{MANIFEST}"):
            return False
        try:
            if name not in self._intact:
                self.load(name)
        except CheckpointError as error:
            logger.warning("%s; the checkpoint is written again", error)
            return False
        return True

    def _announce(self, name: str) -> None:
        """Note the name of a checkpoint before it is written, so that nobody has to look for it."""
        known = self._known()
        if not self.is_local:
            if not known:
                self._steadily(lambda: self._fs.create_dir(self._root, recursive=True))
            content = {"names": sorted({*known, name}), "keep_every": self.keep_every}
            self._replace(self.path(RECENT), json.dumps(content).encode())

    def _known(self) -> list[str]:
        """Return the complete checkpoints on which retention has still to decide, oldest first."""
        if self._recent is None:
            content = self._pointer()
            if content is not None and content.get("keep_every") == self.keep_every:
                self._recent = [name for name in content["names"] if self.holds(name)]
            else:
                self._recent = self.names()
        return self._recent

    def _pointer(self) -> dict[str, Any] | None:
        """Return what ``recent.json`` holds; None without one that can be read."""
        if self.is_local:  # a folder is listed in one call, whoever changes it
            return None
        path = self.path(RECENT)
        try:
            content = json.loads(self._read(path))
            if all(str(name).startswith("step-") for name in content["names"]):
                return dict(content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be read (%s): the checkpoints are listed", path, error)
            return None
        return None

    def _retain(self, packed: Packed) -> None:
        """Delete those that need not stay; the next commit tries again what fails.

        After a fallback to an older checkpoint, the damaged newer ones do not count.
        """
        best = None if packed.best is None else packed.best["name"]
        try:
            known = sorted({*self._known(), packed.name})
            names = [name for name in known if name <= packed.name]
            old = expendable(names, keep=self.keep, every=self.keep_every, best=best)
            stays = {*old, *names[-self.keep :], *known[len(names) :], best}
            self._recent = [name for name in known if name in stays]  # the others stay for good
            for name in old:
                self._remove(self.path(name))
                self._recent.remove(name)
        except (CheckpointError, OSError) as error:
            logger.warning("%s: older checkpoints could not be deleted (%s)", self.uri, error)

    def clean(self) -> list[str]:
        """Remove what interrupted commits have left behind, and return the names.

        Only safe at the start of a run, when nothing else writes.
        """
        try:
            pointer = self._pointer()
            found = self._steadily(self._folders) if pointer is None else pointer["names"]
            left = [
                name
                for name in found
                if name.startswith(".tmp-step-")
                or (name.startswith("step-") and not self.holds(name))
            ]
            left = [name for name in left if pointer is None or self._is_there(name)]
            for name in left:
                self._remove(self.path(name))
        except (CheckpointError, OSError) as error:  # it does not count as a checkpoint
            logger.warning("%s: what is left over could not be deleted (%s)", self.uri, error)
            return []
        return left

    def best(self) -> dict[str, Any] | None:
        """Return ``name``, ``metric``, ``value``, ``epoch`` of the best checkpoint, if any.

        Raises:
            CheckpointError: If ``best.json`` is damaged.
        """
        path = self.path(BEST)
        try:
            best = dict(json.loads(self._read(path)))
            return best if self.holds(best["name"]) else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); name one of the checkpoints beside it"
            ) from error

    def selected(self) -> str | None:
        """Return the name of the best checkpoint if validation chose one, else of the newest.

        Raises:
            CheckpointError: If ``best.json`` is damaged, or the storage cannot be reached.
        """
        best = self.best()
        return self.newest() if best is None else best["name"]

    def hash_of_model(self, name: str) -> str:
        """Return a SHA-256 of a checkpoint's weights, architecture and records, by its manifest.

        Raises:
            CheckpointError: If there is no such checkpoint, or its manifest is damaged.
        """
        manifest = self._read_manifest(self.path(name))
        weights = manifest["files"][MODEL_FILE]["sha256"]
        content = [manifest["architecture"], manifest.get("records"), weights]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def load_selected(self) -> Checkpoint | None:
        """Load the best checkpoint if validation chose one, else the newest.

        Raises:
            CheckpointError: If it is damaged.
        """
        best = self.best()
        return self.load_latest() if best is None else self.load(best["name"])

    def _save(self, packed: Packed) -> None:
        name = packed.name
        target = f"{self._root}/.tmp-{name}" if self.is_local else self.path(name)
        try:
            self._remove(target)
            self._write_all(target, packed)
            if self.is_local:
                self._remove(self.path(name))
                Path(target).rename(self.path(name))
        except BaseException:  # Ctrl-C too leaves no half checkpoint
            with suppress(OSError):  # without its manifest it does not count
                self._remove(target)
            raise

    def _mark(self, best: Mapping[str, Any]) -> None:
        self._replace(self.path(BEST), (json.dumps(dict(best)) + "\n").encode())

    def holds(self, name: str) -> bool:
        """Return whether a checkpoint is complete.

        Raises:
            CheckpointError: If the storage cannot be reached.
        """
        with self._listing():
            return self._is_there(f"{name}/{MANIFEST}")

    def _is_there(self, name: str) -> bool:
        return self._steadily(lambda: exists(self._fs, self.path(name)))

    def newest(self) -> str | None:
        """Return the name of the newest complete checkpoint, if any.

        Raises:
            CheckpointError: If the storage cannot be reached.
        """
        return next(self._newest_first(), None)

    def names(self) -> list[str]:
        """Return the folder names of the complete checkpoints, oldest first.

        Raises:
            CheckpointError: If the storage cannot be reached.
        """
        with self._listing():
            return [name for name in self._listed() if self.holds(name)]

    def _newest_first(self) -> Iterator[str]:
        """Return the complete checkpoints, those of ``recent.json`` without listing the others."""
        with self._listing():
            pointer = self._pointer() or {}
            named = sorted(pointer.get("names", []), reverse=True)
            yield from filter(self.holds, named)
            others = set(self._listed()) - set(named)
            yield from filter(self.holds, sorted(others, reverse=True))

    def _listed(self) -> list[str]:
        return sorted(name for name in self._steadily(self._folders) if name.startswith("step-"))

    @contextmanager
    def _listing(self) -> Iterator[None]:
        """Translate an error of the storage."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.uri}: the checkpoints there cannot be listed ({error}); see that the "
                "storage can be reached and read"
            ) from error

    def _folders(self) -> list[str]:
        selector = pafs.FileSelector(self._root, allow_not_found=True)
        return [info.base_name for info in self._fs.get_file_info(selector)]

    def load(self, name: str) -> Checkpoint:
        """Load a checkpoint after comparing every file with the manifest.

        Raises:
            CheckpointError: If a file is missing or differs, the format is another one, or a weight
                is not finite.
        """
        loaded = self._contents(name).loaded()
        self._intact.add(name)
        return loaded

    def load_latest(self) -> Checkpoint | None:
        """Load the newest checkpoint that verifies, falling back to older ones.

        Returns:
            None where there is no checkpoint at all.

        Raises:
            CheckpointError: If there are checkpoints and all of them are damaged.
        """
        found = self.read_latest()
        return None if found is None else found[1]

    def read_latest(self) -> tuple[Contents, Checkpoint] | None:
        """Return the files of :meth:`load_latest` too, to hand them on.

        Raises:
            CheckpointError: If there are checkpoints and all of them are damaged.
        """
        damaged = 0
        for name in self._newest_first():
            try:
                contents = self._contents(name)
                loaded = contents.loaded()
            except CheckpointError as error:
                logger.warning("%s; trying the checkpoint before it", error)
                damaged += 1
                continue
            self._intact.add(name)
            return contents, loaded
        if damaged:
            raise CheckpointError(
                f"{self._root}: all {damaged} checkpoints are damaged; restore one from a copy, "
                "or start afresh with another run.name"
            )
        return None

    def drop_optimizer(self) -> None:
        """Remove the optimizer's state from all checkpoints, which then only hold a run's result.

        A checkpoint is whole at every moment; one for which it fails stays as it is.
        """
        for name in self.names():
            try:
                self._drop_optimizer(name)
            except (CheckpointError, OSError) as error:
                logger.warning("%s: the optimizer's state stays (%s)", self.path(name), error)

    def _drop_optimizer(self, name: str) -> None:
        where = self.path(name)
        manifest = self._read_manifest(where)
        if TRAIN_FILE in manifest["files"]:
            train = self.load(name).train
            blob = _saved({key: value for key, value in train.items() if key != OPTIMIZER})
            files = {MODEL_FILE: manifest["files"][MODEL_FILE], PROGRESS_FILE: _record(blob)}
            text = json.dumps({**manifest, "files": files}, indent=1)
            self._replace(f"{where}/{PROGRESS_FILE}", blob)  # does not count before the manifest
            self._replace(f"{where}/{MANIFEST}", text.encode())
        if exists(self._fs, f"{where}/{TRAIN_FILE}"):
            self._fs.delete_file(f"{where}/{TRAIN_FILE}")

    def _contents(self, name: str) -> Contents:
        """Return the manifest and files of a checkpoint, compared with each other."""
        where = self.path(name)
        manifest = self._read_manifest(where)
        files = manifest["files"].items()
        blobs = {file: self._verified(f"{where}/{file}", record) for file, record in files}
        return Contents(where, manifest, blobs)

    def _write_all(self, target: str, packed: Packed) -> None:
        self._fs.create_dir(target, recursive=True)
        files: dict[str, dict[str, Any]] = {}
        for file, blob in packed.files.items():
            self._write(f"{target}/{file}", blob)
            files[file] = _record(blob)
        text = json.dumps({**packed.manifest, "files": files}, indent=1)
        self._write(f"{target}/{MANIFEST}", text.encode())

    def _replace(self, path: str, blob: bytes) -> None:
        """Write a file in one step."""
        if not self.is_local:
            self._steadily(lambda: self._write(path, blob))
            return
        place = Path(path)
        written = place.with_name(f".tmp-{place.name}")
        self._write(str(written), blob)
        written.replace(place)

    def _write(self, path: str, blob: bytes) -> None:
        if self.is_local:
            with Path(path).open("wb") as stream:
                stream.write(blob)
                stream.flush()
                os.fsync(stream.fileno())
        else:
            with self._fs.open_output_stream(path) as stream:
                stream.write(blob)

    def _read_manifest(self, where: str) -> dict[str, Any]:
        try:
            manifest = json.loads(self._read(f"{where}/{MANIFEST}"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{where}/{MANIFEST} cannot be read ({error})") from error
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if found != FORMAT:
            raise CheckpointError(
                f"{where}/{MANIFEST}: checkpoint format {found!r}, this version reads {FORMAT}"
            )
        missing = [key for key in ("step", "architecture", "files") if key not in manifest]
        files = manifest.get("files", {}).keys()
        if missing or MODEL_FILE not in files or not files & {TRAIN_FILE, PROGRESS_FILE}:
            raise CheckpointError(
                f"{where}/{MANIFEST}: it does not list a whole checkpoint"
                f" ({', '.join(missing) or f'{MODEL_FILE} or {TRAIN_FILE} is missing'})"
            )
        return manifest

    def _verified(self, path: str, record: Mapping[str, Any]) -> bytes:
        try:
            blob = self._read(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error})") from error
        if len(blob) != record["bytes"] or hashlib.sha256(blob).hexdigest() != record["sha256"]:
            raise CheckpointError(f"{path} is damaged (its size or SHA-256 is not the manifest's)")
        return blob

    def _read(self, path: str) -> bytes:
        def read() -> bytes:
            with self._fs.open_input_stream(path) as stream:
                return bytes(stream.read())

        return self._steadily(read)

    def _steadily(self, attempt: Callable[[], T]) -> T:
        return attempt() if self.is_local else with_retries(attempt)

    def _remove(self, path: str) -> None:
        if self.is_local:
            shutil.rmtree(path, ignore_errors=True)
        elif exists(self._fs, path):
            if exists(self._fs, f"{path}/{MANIFEST}"):  # first: without it the rest does not count
                self._fs.delete_file(f"{path}/{MANIFEST}")
            self._fs.delete_dir(path)


def place_of(path: str) -> tuple[CheckpointStore, str | None]:
    """Return the store of a run's or its ``checkpoints`` folder, or of one checkpoint and its name.

    Raises:
        CheckpointError: If the storage cannot be reached.
    """
    if _has(path, MANIFEST):
        parent, name = split(absolute(path))
        return CheckpointStore(parent), name
    inner = join(path, "checkpoints")
    return CheckpointStore(inner if _has(path, "checkpoints") else path), None


def _has(path: str, name: str) -> bool:
    try:
        filesystem, root = open_filesystem(path)
        return exists(filesystem, f"{root}/{name}")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: it cannot be reached ({error})") from error


def load_model_state(
    model: torch.nn.Module, state: Mapping[str, torch.Tensor], *, source: str
) -> None:
    """Load a state dict strictly, with a message that names what to change.

    Raises:
        CheckpointError: On a missing or unexpected key, or another shape.
    """
    check_model_state(model, state, source=source)
    model.load_state_dict(dict(state))


def check_model_state(
    model: torch.nn.Module, state: Mapping[str, torch.Tensor], *, source: str
) -> None:
    """Compare a state dict with a model, which may lie on the meta device.

    Raises:
        CheckpointError: On a missing or unexpected key, or another shape.
    """
    own = model.state_dict()
    for key, tensor in state.items():
        if key in own and own[key].shape != tensor.shape:
            raise CheckpointError(
                f"{source}: {key} has shape {tuple(tensor.shape)}, the configured model has "
                f"{tuple(own[key].shape)}; set model.preset and model.embed_dim, model.depth, "
                "model.num_groups, model.group_size to those of the checkpoint"
            )
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{source}: it does not fit the configured model (missing: {_some(missing)}; "
            f"unexpected: {_some(unexpected)}); set model.* and teacher.* as in the run that "
            "wrote it"
        )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "") or "none"


def not_finite(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of the tensors, of one device, with a value that is not finite."""
    names = [name for name, value in state.items() if value.is_floating_point()]
    if not names:
        return []
    # A sum is several times as fast as a test of every value; a large one may overflow.
    sums = torch.stack([state[name].sum().float() for name in names])
    suspects = [name for name, ok in zip(names, sums.isfinite().tolist(), strict=True) if not ok]
    return [name for name in suspects if not state[name].isfinite().all()]


FORMAT = 1
#: Entry of the training state that only continuing a run needs.
OPTIMIZER = "optimizer"


@dataclass(frozen=True)
class Packed:
    """A checkpoint as bytes, on its way to the storage.

    Attributes:
        name: Folder name, ``step-<number>``.
        files: File name to content.
        manifest: Fields of ``MANIFEST.json`` besides the files.
        best: New content of ``best.json``, None to leave it as it is.
    """

    name: str
    files: dict[str, bytes]
    manifest: dict[str, Any]
    best: dict[str, Any] | None


def pack(
    step: int,
    *,
    model: Mapping[str, torch.Tensor],
    train: Mapping[str, Any],
    architecture: Mapping[str, Any],
    records: Mapping[str, Any] | None = None,
    best: Mapping[str, Any] | None = None,
) -> Packed:
    """Return the files of a checkpoint; later changes of the tensors do not reach them.

    Args:
        step: Optimizer steps behind it.
        model: State dict of the model.
        train: State that continues the run.
        architecture: Constructor arguments of the model.
        records: Plain data of the task that goes with the model.
        best: ``name``, ``metric``, ``value`` and ``epoch`` of the best validated checkpoint so far,
            which may be this one; it is never deleted.
    """
    files = {MODEL_FILE: _saved(model), TRAIN_FILE: _saved(train)}
    manifest = {
        "format": FORMAT,
        "step": step,
        "architecture": dict(architecture),
        "records": dict(records or {}),
    }
    name = f"step-{step:08d}"
    return Packed(name, files, manifest, None if best is None else dict(best))


def _saved(content: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()


def _record(blob: bytes) -> dict[str, Any]:
    """Return the entry of a file in the manifest."""
    return {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}


def expendable(
    names: Sequence[str], *, keep: int, every: int | None, best: str | None
) -> list[str]:
    """Return the checkpoints, of names from the oldest on, that need not stay.

    The last ``keep`` stay, the best one, and those after every ``every`` steps.
    """
    return [
        name
        for name in names[:-keep]
        if name != best and (every is None or int(name.removeprefix("step-")) % every)
    ]
