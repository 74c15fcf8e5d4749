"""Runners that build shards in this process or in several of this machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, Any

from recon_ray.errors import DataError
from recon_ray.machine import available_memory, cpu_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from multiprocessing.process import BaseProcess

    from recon_ray.data.prepare.shard_plan import ShardTask

    Record = dict[str, Any]
    Build = Callable[[ShardTask], Record]
    Run = Callable[[Build, Sequence[ShardTask]], Iterable[Record]]

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 5.0
#: Shards a process that are submitted to it before it asks for them.
AHEAD = 4


def run_serial(build: Build, tasks: Sequence[ShardTask]) -> Iterator[Record]:
    """Build the shards one after the other in this process."""
    for task in tasks:
        yield build(task)


def run_processes(num_processes: int | None = None) -> Run:
    """Return a runner that builds shards in several processes of this machine.

    Args:
        num_processes: How many at once; by default one a CPU, or fewer where each has to hold a
            large file of the source and memory is short.
    """

    def run(build: Build, tasks: Sequence[ShardTask]) -> Iterator[Record]:
        wanted = fitting_processes(tasks) if num_processes is None else num_processes
        workers = min(wanted, len(tasks))
        if workers <= 1:
            yield from run_serial(build, tasks)
            return
        # Spawned, not forked: Arrow's and Embree's threads do not survive a fork.
        context = get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
            left = iter(tasks)
            futures = {pool.submit(build, task) for task in islice(left, AHEAD * workers)}
            try:
                while futures:
                    done, futures = wait(futures, return_when=FIRST_COMPLETED)
                    futures |= {pool.submit(build, task) for task in islice(left, len(done))}
                    for future in done:
                        yield future.result()
            except KeyboardInterrupt:
                # A shard may take minutes; the caller removes its unfinished files.
                for process in list((pool._processes or {}).values()):
                    process.terminate()
                raise
            except BrokenProcessPool as error:
                raise DataError(
                    "a process that built a shard was killed, probably for lack of memory; lower "
                    "prepare.samples_per_shard or the number of workers and run again"
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    return run


def fitting_processes(tasks: Sequence[ShardTask]) -> int:
    """Return how many processes can build shards at once: one a CPU, while memory lasts."""
    cpus, available = cpu_count(), available_memory()
    held = tasks[0].held_bytes if tasks else 0  # the same source for all of them
    if not held or available is None or cpus * held <= available:
        return cpus
    fitting = max(1, available // held)
    logger.warning(
        "prepare: %d processes instead of %d: each holds %.1f GB of the source, %.1f GB are free; "
        "prepare.processes chooses another number",
        fitting,
        cpus,
        held / 1e9,
        available / 1e9,
    )
    return fitting


def _end_with_parent() -> None:
    """End this worker when its job is killed; it would wait for further tasks forever.

    A Ctrl-C in the terminal reaches the workers too; only the parent acts on it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def watch(process: BaseProcess) -> None:
        process.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, args=(parent,), daemon=True).start()


class ShardProgress:
    """Log of a job's progress every few seconds, with the rate and the time left.

    Args:
        job: Name of the job.
        shards: Shards that it builds.
        units: Units of work in all of them.
        unit: Name of a unit.
    """

    def __init__(self, job: str, *, shards: int, units: int, unit: str) -> None:
        self.job, self.shards, self.units, self.unit = job, shards, units, unit
        self._done_shards = self._done_units = 0
        self._start = self._last = time.monotonic()

    def add(self, units: int) -> None:
        """Count one more shard."""
        self._done_shards += 1
        self._done_units += units
        now = time.monotonic()
        if now - self._last < PROGRESS_SECONDS and self._done_shards < self.shards:
            return
        self._last = now
        rate = self._done_units / max(now - self._start, 1e-9)
        left = (self.units - self._done_units) / max(rate, 1e-9)
        digits = 0 if rate >= 10 else 1
        logger.info(
            "%s: %d/%d shards, %.*f %s/s, about %.0f s left",
            self.job, self._done_shards, self.shards, digits, rate, self.unit, left,
        )  # fmt: skip
