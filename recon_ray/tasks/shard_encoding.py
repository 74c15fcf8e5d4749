"""A set encoded shard by shard: finished shards stay, a pool of workers encodes the others.

A shard is a pure function of its task and the model: neither the number of workers nor an
interruption changes a byte. It is written whole or not at all, and recognized by the key of its
task, the hash of what it is computed from.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from recon_ray.cluster.encode_pool import EncodePool, ShardWorker
from recon_ray.data.format.files import remove_temporaries
from recon_ray.data.prepare.runners import ShardProgress
from recon_ray.errors import DataError
from recon_ray.storage import Place

TaskT = TypeVar("TaskT", bound="EncodeTask")

logger = logging.getLogger(__name__)

#: Folder of records of finished shards below the root, for files without a key in themselves.
RECORDS = "_records"


@dataclass(frozen=True)
class EncodeTask(ABC):
    """Everything that encoding one shard needs besides the model; picklable.

    Attributes:
        root: Folder or URI of the output.
        file: The shard's file below it.
        key: Hash of the model and the samples; a file with another key is not this shard.
        units: Number of shapes, pictures or texts.
    """

    root: str
    file: str
    key: str
    units: int

    @abstractmethod
    def is_finished(self, files: Mapping[str, int]) -> bool:
        """Return whether the shard is there already.

        Args:
            files: The files of the output and their bytes, of one listing.
        """


def encode_shards(
    job: str,
    tasks: Sequence[TaskT],
    pool: EncodePool,
    make_worker: Callable[[], ShardWorker],
    *,
    unit: str,
) -> list[TaskT]:
    """Encode the shards that are not finished.

    Args:
        job: Name of the job, for the log.
        tasks: All shards of one output.
        pool: Where they are encoded.
        make_worker: Makes the worker; called before anything is written, if anything has to be.
        unit: Name of the units in the plural.

    Returns:
        The tasks whose shards were encoded.

    Raises:
        DataError: If a sample or a file cannot be read or written, or is not there in the end.
    """
    if not tasks:
        return []
    root = Place(tasks[0].root)
    todo = unfinished(tasks)
    done, units = len(tasks) - len(todo), sum(task.units for task in todo)
    logger.info("%s: %d shards, %d of them finished", root, len(tasks), done)
    progress = ShardProgress(job, shards=len(todo), units=units, unit=unit)
    try:
        for encoded in pool.run(make_worker(), todo) if todo else ():
            progress.add(encoded)
    finally:
        remove_temporaries(root, {RECORDS, *(task.file.partition("/")[0] for task in tasks)})
    files = root.files() if todo else {}
    for task in (task for task in todo if task.file not in files):
        raise DataError(
            f"{root / task.file}: was encoded, but is not there: it was removed, or the "
            "workers write to another disk; give a folder that all nodes share and run again"
        )
    return todo


def unfinished(tasks: Sequence[TaskT]) -> list[TaskT]:
    """Return the tasks of one output whose shards have to be encoded."""
    files = Place(tasks[0].root).files() if tasks else {}
    return [task for task in tasks if not task.is_finished(files)]
