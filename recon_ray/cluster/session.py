"""Joining or starting a Ray cluster, and refusing what would hang or not fit before it starts."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private import ray_constants

from recon_ray.cluster.token import KNOCK_SECONDS, Access, join_with_token, require_token
from recon_ray.cluster.workarounds.leaving import leave
from recon_ray.config.sections.common import ClusterSection
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


def prepare_environment(options: ClusterSection) -> None:
    """Set Ray's environment variables for this process and its workers, where they are not set."""
    wanted = dict(ENVIRONMENT)
    wanted["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(options.start_timeout_seconds)
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def joins_cluster(options: ClusterSection) -> bool:
    """Return whether the job joins a cluster that runs already (its own, in `ray job submit`)."""
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


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
