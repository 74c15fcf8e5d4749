"""The Ray cluster of a job: the one that it joins, or a local one that it starts."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from recon_ray.cluster.token import CONNECT_SECONDS, Access, join_with_token, require_token
from recon_ray.cluster.workarounds.environment import (
    JOB,
    LOCAL_CLUSTER,
    START_TIMEOUT,
    set_environment,
)
from recon_ray.cluster.workarounds.late_settings import keep_to_loopback
from recon_ray.cluster.workarounds.placement_group_cleaner import name_cluster, quiet_cleaner
from recon_ray.cluster.workarounds.ray_shutdown import shut_down
from recon_ray.config.sections.common import ClusterSection
from recon_ray.errors import ConfigError
from recon_ray.machine import cpu_count

logger = logging.getLogger(__name__)


def prepare_environment(options: ClusterSection) -> None:
    """Set Ray's environment variables for this process and its workers, where they are not set."""
    set_environment({**JOB, START_TIMEOUT: str(options.start_timeout_seconds)})


def joins_cluster(options: ClusterSection) -> bool:
    """Return whether the job joins a running cluster (under `ray job submit`, its own)."""
    return options.address is not None or bool(os.environ.get("RAY_ADDRESS"))


@contextmanager
def ray_session(
    options: ClusterSection, *, dashboard: bool = False, show_workers: bool = True
) -> Iterator[None]:
    """Join the cluster of the job or address, or start a local one for the duration of the job.

    Inside a trial, whose process belongs to a cluster already, that one is used. A local cluster
    gets one logical CPU more than the workers reserve, so that reading data never starves; logical
    CPUs are bookkeeping, ``runtime.threads`` sets the threads.

    Args:
        options: The cluster's section.
        dashboard: Whether workers end while the job goes on: Ray Train needs the dashboard to free
            what they reserved. A local cluster starts one, on loopback.
        show_workers: Whether to print what the workers print.

    Raises:
        ConfigError: If the address cannot be joined, or requires another token.
    """
    if ray.is_initialized():
        yield
        return
    prepare_environment(options)
    if joins_cluster(options):
        _join(options, show_workers=show_workers)
    else:
        _start(options, dashboard=dashboard, show_workers=show_workers)
    try:
        yield
    finally:
        shut_down()


def _join(options: ClusterSection, *, show_workers: bool) -> None:
    address = options.address or os.environ.get("RAY_ADDRESS", "")
    try:
        _check_address(address)
        ray.init(
            address=options.address or "auto",
            log_to_driver=show_workers,
            runtime_env={"worker_process_setup_hook": name_cluster},
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"cluster.address={address}: no Ray cluster answers there ({_first_line(error)}); "
            "start one, or leave it empty for a local one"
        ) from error


def _start(options: ClusterSection, *, dashboard: bool, show_workers: bool) -> None:
    set_environment(LOCAL_CLUSTER)
    keep_to_loopback()
    require_token()
    reserved = options.max_workers * options.cpus_per_worker
    ray.init(
        address="local",
        num_cpus=max(cpu_count(), math.ceil(reserved) + 1),
        object_store_memory=options.object_store_bytes,
        include_dashboard=dashboard,
        log_to_driver=show_workers,
        logging_level=logging.WARNING,
        runtime_env={"worker_process_setup_hook": name_cluster if dashboard else quiet_cleaner},
    )


def _check_address(address: str) -> None:
    """Connect to a ``host:port`` once: Ray itself retries for minutes where nothing listens.

    Raises:
        ConfigError: If a cluster answers there that requires another token.
        ConnectionError: If nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if not host or "//" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(error.strerror or "no answer") from error
    if join_with_token(address) is Access.OPEN:
        logger.warning(
            "the cluster at %s requires no token: whoever reaches it can run code there; start it "
            "with RAY_AUTH_MODE=token", address,
        )  # fmt: skip


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
