"""Joining or starting a Ray cluster, and refusing what would hang or not fit before it starts."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray._private import ray_constants

from recon_ray.cluster.access import KNOCK_SECONDS, Access, join_with_token, require_token
from recon_ray.cluster.leaving import leave
from recon_ray.config.schema import ClusterSection
from recon_ray.errors import ConfigError
from recon_ray.machine import cpu_count

logger = logging.getLogger(__name__)

#: Environment of the job and its workers; a value that the user has set stays.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # reports are collected at this pace
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "900",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
#: Further settings of a cluster that the job starts itself.
LOCAL_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every server on loopback
    "MALLOC_ARENA_MAX": "2",  # saves 50 MB a worker
    "RAY_DATA_LOG_LEVEL": "WARNING",  # else two lines of praise for every pass of a stream
}


@dataclass(frozen=True)
class WorkerPlan:
    """Resources that the workers of a job reserve.

    Args:
        min_workers: Fewest workers.
        max_workers: Most workers.
        cpus_per_worker: Logical CPUs each.
        gpus_per_worker: GPUs each.
        nodes: Nodes of the cluster.
        cpus: Logical CPUs of the cluster.
        cores: CPUs that the threads of all workers may share.
    """

    min_workers: int
    max_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    nodes: int
    cpus: float
    cores: int

    @property
    def threads_per_worker(self) -> int:
        """Threads of torch in a worker: the cores divided by the workers."""
        return max(1, self.cores // self.max_workers)

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change."""
        return self.min_workers != self.max_workers


def prepare_environment(options: ClusterSection) -> None:
    """Set Ray's environment variables for this process and its workers, where they are not set."""
    wanted = dict(ENVIRONMENT)
    wanted["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(options.start_timeout_seconds)
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def joins_cluster(options: ClusterSection) -> bool:
    """Whether the job joins a cluster that runs already (its own, in `ray job submit`)."""
    return options.address is not None or bool(os.environ.get("RAY_ADDRESS"))


@contextmanager
def ray_session(
    options: ClusterSection, *, dashboard: bool = False, show_workers: bool = True
) -> Iterator[None]:
    """Join the cluster of the job or address, or start a local one for the time of the job.

    Inside a trial, whose process belongs to a cluster already, that one is used. A local cluster is
    told of one CPU more than the workers reserve, so that reading data never starves: logical CPUs
    are bookkeeping, threads are set by ``runtime.threads``.

    Args:
        options: Where.
        dashboard: Workers are to be cleaned up while the job goes on, for which Ray Train asks the
            dashboard; that of a local cluster is started, on loopback.
        show_workers: Bring what the workers print to this process.

    Raises:
        ConfigError: If the address cannot be joined, or asks for another token.
    """
    if ray.is_initialized():
        yield
        return
    prepare_environment(options)
    if joins_cluster(options):
        try:
            _knock(options.address or os.environ.get("RAY_ADDRESS", ""))
            ray.init(
                address=options.address or "auto",
                log_to_driver=show_workers,
                runtime_env={"worker_process_setup_hook": _name_cluster} if dashboard else None,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"cluster.address={options.address or os.environ.get('RAY_ADDRESS')}: no Ray "
                f"cluster answers there ({_first_line(error)}); start one, or leave it "
                "empty for a local one"
            ) from error
    else:
        for name, value in LOCAL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Ray read the variable when it was imported; its processes read it when they start.
        ray_constants.ENABLE_RAY_CLUSTER = False
        require_token()
        reserved = options.max_workers * options.cpus_per_worker
        cpus = max(cpu_count(), math.ceil(reserved) + 1)
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=options.object_store_bytes,
            include_dashboard=dashboard,
            log_to_driver=show_workers,
            logging_level=logging.WARNING,
            runtime_env={
                "worker_process_setup_hook": _name_cluster if dashboard else _quiet_cleaner
            },
        )
    try:
        yield
    finally:
        leave()


def _knock(address: str) -> None:
    """Connect to a ``host:port`` once: Ray itself would try for minutes where nothing listens.

    Raises:
        ConfigError: If a cluster answers there that asks for another token.
        ConnectionError: If nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if not host or "//" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
    except OSError as error:
        raise ConnectionError(error.strerror or "no answer") from error
    if join_with_token(address) is Access.OPEN:
        logger.warning(
            "the cluster at %s asks for no token: whoever reaches it can run code there; start it "
            "with RAY_AUTH_MODE=token", address,
        )  # fmt: skip


def _quiet_cleaner() -> None:
    """Silence Ray Train's cleaner in a cluster without dashboard.

    It asks the dashboard once a second whether the controller lives, and says each time that it got
    no answer. What it would clean up goes with the local cluster.
    """
    name = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    logging.getLogger(name).setLevel(logging.ERROR)


def _name_cluster() -> None:
    """Tell a worker's queries of the dashboard which cluster they are about.

    Where several Rays run on a machine, Ray Train's cleaner would otherwise find no answer, and the
    workers of a stopped run would stay reserved.
    """
    address = ray.get_runtime_context().gcs_address
    os.environ.setdefault("RAY_API_SERVER_ADDRESS", address)


def plan_workers(
    options: ClusterSection, *, reads_during_training: bool, device: str
) -> WorkerPlan:
    """Compare what the workers reserve with what the cluster has, before anything starts.

    Args:
        options: The cluster's section.
        reads_during_training: Whether Ray Data reads files while the workers run, for which it
            needs one whole CPU that no worker has reserved; it would hang silently otherwise.
        device: ``runtime.device``.

    Raises:
        ConfigError: If the plan does not fit; the message says what to change.
    """
    have = ray.cluster_resources()
    cpus, gpus = float(have.get("CPU", 0)), float(have.get("GPU", 0))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    low, high = options.allowed_workers[0], options.allowed_workers[-1]
    gpus_each = gpus_per_worker(options, device, gpus)
    if gpus_each == 0 and gpus and device == "auto" and options.gpus_per_worker is None:
        logger.warning(
            "runtime.device=auto: the cluster has %g GPUs for %d workers, so that these take none "
            "and compute on CPUs; lower cluster.workers or cluster.gpus_per_worker, or have it "
            "refused with runtime.device=cuda", gpus, low,
        )  # fmt: skip
    if device == "cuda" and gpus_each == 0:
        raise ConfigError(
            f"runtime.device=cuda: the cluster has {gpus:g} GPUs for {low} workers; "
            "lower cluster.workers, submit again when its nodes have joined, or set "
            "runtime.device=auto"
        )
    need = Need(options.cpus_per_worker, gpus_each)
    _refuse_too_few("CPU", cpus, need.cpus, low, "cluster.cpus_per_worker")
    _refuse_too_few("GPU", gpus, need.gpus, low, "cluster.gpus_per_worker")
    _refuse_scattered(nodes, need, low)
    if reads_during_training:
        _refuse_no_reader(nodes, need, low, cpus)
        most = min(high, sum(need.fits_into(node) for node in nodes))
        if not _leaves_one_cpu(nodes, need, most):
            logger.warning(
                "cluster.workers=[%d, %d]: at %d workers no CPU is left to read with and the run "
                "would wait; lower the maximum, or set data.mode=shared", low, high, most,
            )  # fmt: skip
    cores = usable_cores(options, cpus, len(nodes))
    return WorkerPlan(low, high, need.cpus, need.gpus, len(nodes), cpus, cores)


def usable_cores(options: ClusterSection, cpus: float, nodes: int) -> int:
    """Give the CPUs of a cluster for threads: those that its nodes report.

    Args:
        options: The cluster's section.
        cpus: Logical CPUs that the cluster reports. One that the job starts itself is told of more
            than there are, see :func:`ray_session`.
        nodes: Nodes of the cluster.
    """
    reported = max(1, int(cpus))
    return reported if joins_cluster(options) else min(reported, cpu_count() * nodes)


def gpus_per_worker(options: ClusterSection, device: str, gpus: float) -> float:
    """GPUs that a worker takes of so many in the cluster: by default one, if they are enough."""
    if options.gpus_per_worker is not None:
        return options.gpus_per_worker
    return 1.0 if device != "cpu" and gpus >= options.allowed_workers[0] else 0.0


@dataclass(frozen=True)
class Need:
    """What one worker reserves on one node."""

    cpus: float
    gpus: float

    def fits_into(self, node: Mapping[str, float]) -> int:
        """How many workers a node of these resources takes."""
        needs = ((self.cpus, "CPU"), (self.gpus, "GPU"))
        counts = [(node.get(kind, 0) + _ROUNDING) // each for each, kind in needs if each]
        return max(int(min(counts)), 0)


#: Fractions of CPUs add up to a little less than they should.
_ROUNDING = 1e-6


def _refuse_too_few(kind: str, have: float, each: float, workers: int, key: str) -> None:
    if workers * each > have + _ROUNDING:
        fitting = int((have + _ROUNDING) // each)
        fewer = f"cluster.workers to {fitting} or " if fitting else ""
        raise ConfigError(
            f"cluster.workers={workers}: they reserve {workers * each:g} {kind}s ({each:g} each), "
            f"the cluster has {have:g}; lower {fewer}{key}"
        )


def _refuse_scattered(nodes: Sequence[Mapping[str, float]], need: Need, workers: int) -> None:
    """A worker cannot be spread over nodes: it would wait for ever."""
    fitting = sum(need.fits_into(node) for node in nodes)
    if fitting < workers:
        what = f"{need.cpus:g} CPUs" + (f" and {need.gpus:g} GPUs" if need.gpus else "")
        fewer = f"cluster.workers to {fitting} or " if fitting else ""
        raise ConfigError(
            f"cluster.workers={workers}: each needs {what} on one node, and the {len(nodes)} nodes "
            f"have room for {fitting} of them; lower {fewer}cluster.cpus_per_worker"
        )


def _refuse_no_reader(
    nodes: Sequence[Mapping[str, float]], need: Need, workers: int, cpus: float
) -> None:
    if _leaves_one_cpu(nodes, need, workers):
        return
    ways = ["data.mode=shared"]
    if workers > 1:
        ways.insert(0, "fewer workers")
    lower = math.floor((cpus - 1) / workers * 100) / 100
    if lower > 0 and _leaves_one_cpu(nodes, Need(lower, need.gpus), workers):
        ways.insert(0, f"cluster.cpus_per_worker={lower:g}")
    choices = f"{', '.join(ways[:-1])}, or {ways[-1]}" if ways[:-1] else ways[-1]
    parts = f", in parts on {len(nodes)} nodes" if len(nodes) > 1 else ""
    raise ConfigError(
        f"data.mode=stream needs one free CPU to read with (so does cached), but {workers} workers "
        f"x {need.cpus:g} CPUs leave {cpus - workers * need.cpus:g} of {cpus:g}{parts}: set "
        f"{choices}"
    )


def _leaves_one_cpu(nodes: Sequence[Mapping[str, float]], need: Need, workers: int) -> bool:
    """Whether the workers can be placed so that some node keeps a whole CPU."""
    for reader, node in enumerate(nodes):
        if node.get("CPU", 0) + _ROUNDING < 1:
            continue
        kept = {**node, "CPU": node["CPU"] - 1}
        others = [*nodes[:reader], *nodes[reader + 1 :], kept]
        if sum(need.fits_into(other) for other in others) >= workers:
            return True
    return False


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
