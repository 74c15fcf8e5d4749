"""Options of every job: identity of the run, precision, workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from recon_ray.protocols import ProtocolFlags, ProtocolName, protocol_flags


def _expand(path: Path) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser can fail)


def _on_disk(path: object) -> object:
    """Refuse a URI, which a path would make a folder of that name."""
    if isinstance(path, str) and "://" in path:
        raise ValueError("this is read from a disk only; give a path, not a URI")
    return path


def _text(path: object) -> object:
    return os.fspath(path) if isinstance(path, Path) else path


def _expand_file(name: str) -> str:
    head, colon, file = name.rpartition(":")
    return f"{head}{colon}{os.path.expanduser(file)}"  # noqa: PTH111


#: A folder, a file or a URI, perhaps also a name: a leading ``~`` is the user's home folder.
Location = Annotated[str, BeforeValidator(_text), AfterValidator(os.path.expanduser)]
#: The same for what is always a path on a disk.
LocalPath = Annotated[Path, BeforeValidator(_on_disk), AfterValidator(_expand)]
#: A teacher such as ``timm:<arch>:<file>``, where the file may begin with ``~``.
TeacherName = Annotated[str, AfterValidator(_expand_file)]
Count = Annotated[int, Field(ge=1)]
if TYPE_CHECKING:
    FilledCount = int | Any
    FilledSplits = tuple[str, ...] | Any
else:  # null until the job fills it in, before it is used
    FilledCount = Count | None
    FilledSplits = Annotated[tuple[str, ...], Field(min_length=1)] | None
#: When hashes of files are compared, see :meth:`PreparedSet.checked`; earlier versions had a bool.
VerifyOption = Annotated[
    Literal["open", "read", "all"],
    BeforeValidator(
        lambda value: (
            {True: "all", False: "open"}.get(value, value) if isinstance(value, bool) else value
        )
    ),
]
#: Words, more than blanks.
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all sections: frozen, strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class RunSection(Section):
    """Identity of a run. The same name and storage continue the same run."""

    name: str | None = Field(None, description="Run name; by default from job, preset and time.")
    storage: Location = Field("runs", description="Folder or URI for runs, seen by all nodes.")
    seed: int = Field(0, ge=0, description="Seed of weights, order, augmentation and masks.")

    @field_validator("storage")
    @classmethod
    def _has_no_password(cls, storage: str) -> str:
        """Refuse a password: the configuration is written to the run's folder."""
        if "://" in storage and urlsplit(storage).password is not None:
            raise ValueError(
                "the URI has a password in it, which would be written to config.yaml; leave it out "
                "and give it in the variables of its store (AWS_SECRET_ACCESS_KEY for example)"
            )
        return storage

    @field_validator("name")
    @classmethod
    def _is_one_folder(cls, name: str | None) -> str | None:
        """Refuse a name that leads out of the storage, or to a hidden folder in it."""
        if name and (name.startswith(".") or not name.isprintable() or {*"/\\"} & {*name}):
            raise ValueError(
                f"expected the name of one folder, found {name!r}; leave out slashes and a leading "
                "dot, run.storage is the folder in which it is made"
            )
        return name


class RuntimeSection(Section):
    """Device, precision and compilation."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device of the workers; auto takes the GPU that Ray assigned, if any."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Precision of the transformer; auto is bf16 on GPUs, but fp32 on CPUs and with "
        "protocol=reference.",
    )
    ops_backend: Literal["auto", "compiled", "pointnet2_ops", "reference"] = Field(
        "auto", description="Implementation of the point operations; auto is the fastest available."
    )
    compile: Literal["off", "default", "max"] = Field(
        "off", description="Compile the step (minutes, then cached); max also tunes its kernels."
    )
    cuda_graph: Literal["auto", "off"] = Field(
        "auto",
        description="Replay the training step as one CUDA graph; auto does so on a GPU, with "
        "several workers only for train.gradient_exchange=flat.",
    )
    threads: Count | None = Field(
        None, description="Torch threads of a worker; by default the job's CPUs, shared evenly."
    )


class ClusterSection(Section):
    """Ray cluster and number of workers."""

    address: str | None = Field(
        None, description="Ray address to join; by default the job's own, else a local one."
    )
    workers: Annotated[int, Field(ge=0)] | tuple[Count, Count] = Field(
        1, description="Data-parallel workers, or [min, max]; 0 runs in this process, without Ray."
    )
    cpus_per_worker: Positive = Field(1.0, description="Logical CPUs that a worker reserves.")
    gpus_per_worker: NonNegative | None = Field(
        None, description="GPUs that a worker reserves; by default 1 if the cluster has enough."
    )
    max_failures: int = Field(10, ge=-1, description="Worker failures allowed; -1 is no limit.")
    resize_interval_seconds: Positive = Field(
        300.0, description="Seconds between two checks of an elastic run for other resources."
    )
    start_timeout_seconds: Positive = Field(
        10.0,
        description="Seconds to wait for the workers' resources before trying again with those "
        "that the cluster then has.",
    )
    object_store_bytes: Annotated[int, Field(ge=80_000_000)] = Field(
        500_000_000, description="Object store of a Ray that the job starts itself."
    )

    @property
    def max_workers(self) -> int:
        """Largest number of workers that may run."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def allowed_workers(self) -> range:
        """Every number of workers that may occur (1 when running without Ray)."""
        low, high = (self.workers,) * 2 if isinstance(self.workers, int) else self.workers
        return range(max(low, 1), max(high, 1) + 1)

    @model_validator(mode="after")
    def _ordered(self) -> ClusterSection:
        if not isinstance(self.workers, int) and self.workers[0] > self.workers[1]:
            low, high = self.workers
            raise ValueError(f"workers=[{low}, {high}]: min is more than max; give [{high}, {low}]")
        return self


class JobConfig(Section):
    """Options of every job."""

    run: RunSection = Field(RunSection(), description="Identity of the run.")
    runtime: RuntimeSection = Field(RuntimeSection(), description="Device and precision.")
    cluster: ClusterSection = Field(ClusterSection(), description="Ray cluster and workers.")

    @property
    def precision(self) -> Literal["auto", "fp32", "bf16"]:
        """Precision that is asked for."""
        return self.runtime.precision


class ProtocolConfig(JobConfig):
    """Options of a job that can follow the published code's protocol."""

    protocol: ProtocolName = Field(
        "sound", description="reference follows the published code's protocol, see the README."
    )

    @property
    def flags(self) -> ProtocolFlags:
        """Habits of the published code that are repeated."""
        return protocol_flags(self.protocol)

    @property
    def precision(self) -> Literal["auto", "fp32", "bf16"]:
        """Precision that is asked for, by an option or by the protocol."""
        left_open = self.runtime.precision == "auto" and self.flags.full_precision
        return "fp32" if left_open else self.runtime.precision
