"""Resources of the workers of a job, compared with those of the cluster."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from recon_ray.cluster.session import joins_cluster
from recon_ray.config.sections.common import ClusterSection
from recon_ray.errors import ConfigError
from recon_ray.machine import cpu_count

logger = logging.getLogger(__name__)

#: Fractions of CPUs add up to a little less than they should.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class WorkerPlan:
    """Resources that the workers of a job reserve.

    Attributes:
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
        """Return the threads of torch in a worker: the cores divided by the workers."""
        return max(1, self.cores // self.max_workers)

    @property
    def is_elastic(self) -> bool:
        """Return whether the number of workers may change."""
        return self.min_workers != self.max_workers


def plan_workers(
    options: ClusterSection,
    *,
    reads_during_training: bool,
    device: str,
    exchanges: bool = True,
) -> WorkerPlan:
    """Plan the workers' resources, and refuse those that do not fit before anything starts.

    Args:
        options: The cluster's section.
        reads_during_training: Whether Ray Data reads files while the workers run, for which it
            should have one whole CPU that no worker has reserved.
        device: ``runtime.device``.
        exchanges: Whether the workers exchange tensors, for which each must have a GPU of its own.

    Raises:
        ConfigError: If the plan does not fit; the message names the options to change.
    """
    have = ray.cluster_resources()
    cpus, gpus = float(have.get("CPU", 0)), float(have.get("GPU", 0))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    low, high = options.allowed_workers[0], options.allowed_workers[-1]
    gpus_each = gpus_per_worker(options, device, gpus)
    if gpus_each == 0 and gpus and device == "auto" and options.gpus_per_worker is None:
        logger.warning(
            "runtime.device=auto: the cluster has %g GPUs for %d workers, so that these take none "
            "and compute on CPUs; lower cluster.workers or cluster.gpus_per_worker, or set "
            "runtime.device=cuda to refuse that", gpus, low,
        )  # fmt: skip
    if device == "cuda" and gpus_each == 0:
        raise ConfigError(
            f"runtime.device=cuda: the cluster has {gpus:g} GPUs for {low} workers; "
            "lower cluster.workers, submit again when its nodes have joined, or set "
            "runtime.device=auto"
        )
    if exchanges and high > 1 and gpus_each % 1:
        raise ConfigError(
            f"cluster.gpus_per_worker={gpus_each:g}: {high} workers that compute together "
            "cannot share a GPU; set cluster.gpus_per_worker=1, or cluster.workers=1"
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
                "cluster.workers=[%d, %d]: at %d workers no CPU is left to read with, which "
                "slows them down; lower the maximum, or set data.mode=shared", low, high, most,
            )  # fmt: skip
    cores = usable_cores(options, cpus, len(nodes))
    return WorkerPlan(low, high, need.cpus, need.gpus, len(nodes), cpus, cores)


def usable_cores(options: ClusterSection, cpus: float, nodes: int) -> int:
    """Return the CPUs of a cluster for threads: those that its nodes report.

    Args:
        options: The cluster's section.
        cpus: Logical CPUs that the cluster reports; a local one reports more than there are, see
            :func:`ray_session`.
        nodes: Nodes of the cluster.
    """
    reported = max(1, int(cpus))
    return reported if joins_cluster(options) else min(reported, cpu_count() * nodes)


def gpus_per_worker(options: ClusterSection, device: str, gpus: float) -> float:
    """Return the GPUs of each worker: by default one, if the cluster has enough."""
    if options.gpus_per_worker is not None:
        return options.gpus_per_worker
    return 1.0 if device != "cpu" and gpus >= options.allowed_workers[0] else 0.0


@dataclass(frozen=True)
class Need:
    """Resources that one worker reserves on one node."""

    cpus: float
    gpus: float

    def fits_into(self, node: Mapping[str, float]) -> int:
        """Return how many workers fit into a node of these resources."""
        needs = ((self.cpus, "CPU"), (self.gpus, "GPU"))
        counts = [(node.get(kind, 0) + _ROUNDING) // each for each, kind in needs if each]
        return max(int(min(counts)), 0)


def _refuse_too_few(kind: str, have: float, each: float, workers: int, key: str) -> None:
    if workers * each > have + _ROUNDING:
        fitting = int((have + _ROUNDING) // each)
        fewer = f"cluster.workers to {fitting} or " if fitting else ""
        raise ConfigError(
            f"cluster.workers={workers}: they reserve {workers * each:g} {kind}s ({each:g} each), "
            f"the cluster has {have:g}; lower {fewer}{key}"
        )


def _refuse_scattered(nodes: Sequence[Mapping[str, float]], need: Need, workers: int) -> None:
    """Refuse workers that no node has room for: they would wait for ever."""
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
        f"data.mode=stream needs one free CPU to read with, but {workers} workers "
        f"x {need.cpus:g} CPUs leave {cpus - workers * need.cpus:g} of {cpus:g}{parts}: set "
        f"{choices}"
    )


def _leaves_one_cpu(nodes: Sequence[Mapping[str, float]], need: Need, workers: int) -> bool:
    """Return whether the workers can be placed so that some node keeps a whole CPU."""
    for reader, node in enumerate(nodes):
        if node.get("CPU", 0) + _ROUNDING < 1:
            continue
        kept = {**node, "CPU": node["CPU"] - 1}
        others = [*nodes[:reader], *nodes[reader + 1 :], kept]
        if sum(need.fits_into(other) for other in others) >= workers:
            return True
    return False
