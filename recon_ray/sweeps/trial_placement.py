"""Function of the trials of a sweep, what they reserve, and how many fit a cluster at once.

A trial is a plain function in one process; one that needs several workers starts a Ray Train run of
its own inside and reserves what that takes. :mod:`recon_ray.sweeps.ray_tune` runs them in parallel.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.state import list_nodes

from recon_ray.cluster.placement import Need, gpus_per_worker, usable_cores
from recon_ray.cluster.session import joins_cluster, ray_session
from recon_ray.config.sections.common import ClusterSection
from recon_ray.errors import ConfigError, ReconError
from recon_ray.machine import cpu_count
from recon_ray.sweeps.config import SweepSection, TrialSection
from recon_ray.sweeps.trial_folders import TrialFolders
from recon_ray.sweeps.trial_progress import TrialProgress

logger = logging.getLogger(__name__)

#: Report of an unfinished trial: epochs done, and the record that the scheduler compares.
Report = Callable[[Mapping[str, float]], None]

#: What a driver of an inner run reserves; Tune refuses a trial that reserves nothing.
DRIVER_CPUS = 0.01
#: How long the dashboard of a cluster may take to answer.
DASHBOARD_SECONDS = 45.0


@dataclass(frozen=True)
class Trial:
    """Trial, by the name of its folder, and what differs from the others, by dotted key."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class TrialJob:
    """Function of the trials and everything that it runs with.

    Attributes:
        run: Runs one trial in its process and returns its metrics; picklable. Its arguments are the
            trial, what is shared, its threads (0 leaves them to it), and a report of its progress.
        folders: Folders of the trials.
        section: Name of the options in messages (``sweep``).
        options: What a trial reserves and, in a sweep, what stops it early.
        metric: What compares the trials.
        mode: ``max`` or ``min``.
        device: ``runtime.device`` of the trials.
        inner: Workers of the run inside each trial; None for plain functions.
        epochs: Epochs of a whole trial, for early stopping.
        grace: Epochs before which none is stopped.
        shared: Data that all trials read, placed in the object store once; ``nbytes`` is its size.
    """

    run: Callable[[Trial, Any, int, Report], dict[str, float]]
    folders: TrialFolders
    section: str
    options: TrialSection
    metric: str
    mode: str = "max"
    device: str = "auto"
    inner: ClusterSection | None = None
    epochs: int = 0
    grace: int = 1
    shared: Any = None

    @property
    def stopping(self) -> SweepSection | None:
        """Options of the early stopping, if any."""
        options = self.options
        return options if isinstance(options, SweepSection) and options.is_stopping else None

    @property
    def cpus(self) -> float:
        """CPUs that a trial takes with all that it starts."""
        if self.inner is None:
            return self.options.cpus_per_trial
        return DRIVER_CPUS + self.inner.max_workers * self.inner.cpus_per_worker

    def run_safely(
        self,
        trial: Trial,
        shared: Any,  # noqa: ANN401 - anything that pickles
        threads: int,
        report: Report,
    ) -> tuple[dict[str, float], str]:
        """Run one trial; an error ends up in its folder and as a sentence.

        One that was begun before keeps its threads, whatever runs beside it now.
        """
        self.folders.clear(trial.name)
        own = self.folders.threads(trial.name)
        try:
            return self.run(trial, shared, threads if own is None else own, report), ""
        except Exception as error:
            line = (str(error).strip().splitlines() or ["no message"])[0]
            sentence = line if isinstance(error, ReconError) else f"{type(error).__name__}: {line}"
            self.folders.mark_failed(trial.name, sentence, traceback.format_exc())
            return {}, sentence


# --- In this process ------------------------------------------------------------------------------


def run_here(job: TrialJob, trials: Sequence[Trial], progress: TrialProgress, threads: int) -> None:
    """Run the trials one after another, without Ray; what they log themselves is shown too."""
    for trial in trials:
        progress.started(trial.name)
        progress.show()
        metrics, failure = job.run_safely(trial, job.shared, threads, lambda _: None)
        if failure:
            progress.broke(trial.name, failure)
        else:
            progress.done(trial.name, metrics)
    progress.close()


# --- On a cluster ---------------------------------------------------------------------------------


@contextmanager
def trial_session(job: TrialJob, cluster: ClusterSection, count: int) -> Iterator[None]:
    """Join a cluster, or start a local one that has room for the trials.

    Raises:
        ConfigError: If the cluster cannot be joined, or trials that are stopped early would leak
            their workers.
    """
    at_once, shared_bytes = _wanted(job, count), getattr(job.shared, "nbytes", 0)
    needs_dashboard = job.inner is not None and job.stopping is not None
    local = cluster.model_copy(
        update={
            "workers": at_once,
            "cpus_per_worker": job.cpus,
            # Blocks are copied once while they are placed.
            "object_store_bytes": max(cluster.object_store_bytes, int(2.5 * shared_bytes)),
        }
    )
    # What trials print would tear the table apart: it is in their folders.
    with ray_session(local, dashboard=needs_dashboard, show_workers=False):
        if needs_dashboard:
            _check_dashboard(job)
        yield


def _wanted(job: TrialJob, count: int) -> int:
    """Return how many trials a local cluster is made for: what the cores allow, or was set."""
    fitting = max(1, math.floor(cpu_count() / job.cpus))
    return min(count, job.options.max_concurrent or fitting)


def _check_dashboard(job: TrialJob) -> None:
    """Refuse a cluster without dashboard: Ray Train reads there which workers are to be cleaned up.

    Without it the workers of a stopped trial stay reserved, and the next trials wait for ever. One
    that has just been started takes some seconds to answer.
    """
    deadline = time.monotonic() + DASHBOARD_SECONDS
    while True:
        try:
            list_nodes(address=ray.get_runtime_context().gcs_address, limit=1, timeout=20)
            return
        except Exception as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{job.section}.scheduler: stopping trials that have several workers needs the "
                    "cluster's dashboard, which does not answer; start the cluster with it, or set "
                    f"{job.section}.scheduler=none"
                ) from error
        time.sleep(1)


@dataclass(frozen=True)
class TrialPlan:
    """Trials at once; logical CPUs and GPUs, as Tune reserves them; threads of each worker."""

    at_once: int
    cpus: float
    gpus: float
    threads: int


def plan_trials(job: TrialJob, cluster: ClusterSection, count: int) -> TrialPlan:
    """Compare what the trials reserve with what the cluster has.

    Raises:
        ConfigError: If not even one fits.
    """
    have, options = ray.cluster_resources(), job.options
    cpus, gpus = float(have.get("CPU", 0)), float(have.get("GPU", 0))
    need, workers = _need(job, gpus), 1 if job.inner is None else job.inner.max_workers
    if job.device == "cuda" and job.inner is None and need.gpus == 0:
        raise ConfigError(
            f"runtime.device=cuda: the cluster has {gpus:g} GPUs and a trial reserves none; set "
            f"{job.section}.gpus_per_trial, or runtime.device=auto"
        )
    at_once = min(count, options.max_concurrent or count)

    def option(kind: str) -> str:
        own = f"{job.section}.{kind.lower()}s_per_trial"
        return own if job.inner is None else "config.cluster.workers"

    for kind, total, each in (("CPU", cpus, job.cpus), ("GPU", gpus, workers * need.gpus)):
        if each > total + 1e-6:
            raise ConfigError(
                f"{option(kind)}: a trial reserves {each:g} {kind}s, the cluster has "
                f"{total:g}; lower it"
            )
    described = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    at_once = _room(described, need, workers, at_once, 0.0 if job.inner is None else DRIVER_CPUS)
    if not at_once:
        fitting = sum(need.fits_into(node) for node in described)
        raise ConfigError(
            f"{option('GPU' if need.gpus else 'CPU')}: a trial needs {workers} x "
            f"({need.cpus:g} CPUs, {need.gpus:g} GPUs), each of them on one node, and the "
            f"{len(described)} nodes have room for {fitting}; lower it"
        )
    if not joins_cluster(cluster):
        at_once = min(at_once, _wanted(job, count))
    threads = max(1, usable_cores(cluster, cpus, len(described)) // (at_once * workers))
    if job.inner is not None:
        return TrialPlan(at_once, DRIVER_CPUS, 0.0, threads)  # its workers reserve the rest
    return TrialPlan(at_once, need.cpus, need.gpus, threads)


def _need(job: TrialJob, gpus: float) -> Need:
    """Return what a trial, or each of its workers, reserves on one node of the cluster."""
    if job.inner is not None:
        return Need(job.inner.cpus_per_worker, gpus_per_worker(job.inner, job.device, gpus))
    each = job.options.gpus_per_trial
    if each is None:
        each = 1.0 if gpus >= 1 and job.device != "cpu" else 0.0
    return Need(job.cpus, each)


def _room(
    nodes: Sequence[Mapping[str, float]], need: Need, workers: int, most: int, driver: float
) -> int:
    """Return how many trials find room at once, wherever the drivers of their runs are.

    Args:
        nodes: Resources of every node.
        need: Reservation of each worker on one node.
        workers: Workers of a trial.
        most: Most trials.
        driver: CPUs of a driver.
    """
    places = [need.fits_into(node) for node in nodes]
    for count in range(most, 0, -1):
        beside = [{**node, "CPU": node.get("CPU", 0) - count * driver} for node in nodes]
        lost = [had - need.fits_into(node) for had, node in zip(places, beside, strict=True)]
        if sum(places) - sum(sorted(lost)[-count:]) >= count * workers:
            return count
    return 0
