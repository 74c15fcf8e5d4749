"""The driver of ``jobs/doctor.py``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from recon_ray.cluster import token as access
from recon_ray.cluster.placement import plan_workers
from recon_ray.cluster.session import joins_cluster, ray_session
from recon_ray.doctor.config import DoctorConfig
from recon_ray.doctor.findings import Finding, Row, count, format_table, gather
from recon_ray.doctor.machine_checks import MachineRequest, inspect_machine, versions
from recon_ray.doctor.node_checks import Node, NodeVisit, alive_nodes, store_round_trip
from recon_ray.doctor.storage_checks import Probe, inspect_data, inspect_storage
from recon_ray.errors import ConfigError, ReconError
from recon_ray.points import ops
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import start_run

logger = logging.getLogger(__name__)

DRIVER = "driver"
SELECTION = "everything that was looked at; errors would break a run, warnings slow it down"


def doctor(job: Job[DoctorConfig]) -> JobResult:
    """Look everything over, print one table, and fail where a run would break."""
    config = job.config
    if job.dry_run:
        return JobResult("dry run: would look the driver and every node over; nothing was run")
    with ray_session(config.cluster) if config.cluster.workers else nullcontext():
        nodes = alive_nodes() if config.cluster.workers else []
        on_ray = f" and {len(nodes)} node{'s'[: len(nodes) != 1]}" if config.cluster.workers else ""
        logger.info("looking over the driver%s", on_ray)
        found = examine(config, nodes)
    rows = gather(found)
    table = format_table(rows, len(found))
    errors, warnings = count(rows, "error"), count(rows, "warning")
    failure = None
    if errors:
        wrong = ", ".join(
            dict.fromkeys(r.finding.check for r in rows if r.finding.level == "error")
        )
        failure = f"a run would break ({wrong}); see the table for what to do"
    return _result(config, rows, table, failure, {"errors": errors, "warnings": warnings})


def _result(
    config: DoctorConfig,
    rows: list[Row],
    table: str,
    failure: str | None,
    metrics: Mapping[str, float],
) -> JobResult:
    try:
        run = start_run("doctor", config, label="check")
    except ReconError:  # the table says what is wrong with the storage
        return JobResult(table, failure=failure)
    places = {place for row in rows for place in row.places}
    written = run.finish(
        {name: float(value) for name, value in metrics.items()},
        table=table,
        selection=SELECTION,
        counts={"nodes": len(places - {DRIVER})},
        checks=[row.record() for row in rows],
    )
    return JobResult(table, written.result_path, failure)


def examine(config: DoctorConfig, nodes: list[Node]) -> dict[str, list[Finding]]:
    """Return the findings of the driver and of every node, by the name of the place."""
    section = config.doctor
    with Probe(config.run.storage) as probe:
        request = MachineRequest({}, config.runtime.ops_backend, "")
        found = {DRIVER: inspect_machine(request)}
        found[DRIVER] += [probe.write(), *inspect_data(section.data or "")]
        found[DRIVER] += [_token(config)] if config.cluster.workers else []
        found[DRIVER] += [_plan(config)] if nodes else []
        if nodes:
            _visit(config, nodes, probe, found)
    return found


def _visit(
    config: DoctorConfig, nodes: list[Node], probe: Probe, found: dict[str, list[Finding]]
) -> None:
    """Add the findings of the nodes."""
    storage, data = config.run.storage, config.doctor.data or ""
    visit = NodeVisit(nodes, timeout_seconds=config.doctor.timeout_seconds)
    calls: dict[str, Any] = {
        node.name: (
            check_node,
            (_request(config, node), storage, probe.written, data),
        )
        for node in nodes
    }
    answers = visit.run(calls)
    for name, answer in answers.items():
        found[name] = answer if isinstance(answer, list) else [_no_answer(answer)]
    offsets = visit.clock_offsets()
    stores = visit.run(dict.fromkeys(offsets, (store_round_trip, ())))
    for name, (ahead, uncertain) in offsets.items():
        found[name].append(_clock(ahead, uncertain, config.doctor.clock_seconds))
        found[name].append(_store(stores[name]))


def check_node(request: MachineRequest, storage: str, probe: str, data: str) -> list[Finding]:
    """All checks of a node, run there."""
    return [*inspect_machine(request), *inspect_storage(storage, probe), *inspect_data(data)]


def _request(config: DoctorConfig, node: Node) -> MachineRequest:
    return MachineRequest(
        versions(),
        config.runtime.ops_backend,
        ops.backend(),
        store_bytes=int(node.resources.get("object_store_memory", 0)),
        gpus=node.resources.get("GPU", 0.0),
    )


def _no_answer(answer: object) -> Finding:
    reason = str(answer).strip().partition("\n")[0] or type(answer).__name__
    advice = "is recon_ray installed there, with what it needs? see the node's Ray logs"
    return Finding("answer", "error", f"the node did not answer: {reason}", advice)


def _clock(ahead: float, uncertain: float, tolerance: float) -> Finding:
    if abs(ahead) - uncertain > tolerance:
        told = f"{ahead:+.1f} s beside the driver's"
        return Finding("clock", "error", told, "synchronize the clocks (chrony, ntpd)")
    return Finding("clock", "ok", f"within {tolerance:g} s of the driver's")


def _store(answer: object) -> Finding:
    if isinstance(answer, float):
        slow = f", in {answer:.1f} s" if answer > 1 else ""
        return Finding("object store", "ok", f"8 MiB written and read{slow}")
    reason = str(answer).strip().partition("\n")[0]
    advice = "start the node with a larger --object-store-memory"
    return Finding("object store", "error", reason or type(answer).__name__, advice)


def _plan(config: DoctorConfig) -> Finding:
    """Return whether ``cluster.workers`` would fit."""
    try:
        plan = plan_workers(
            config.cluster, reads_during_training=False, device=config.runtime.device
        )
    except ConfigError as error:
        return Finding("workers", "error", str(error), "see the message")
    workers = f"{plan.min_workers} to {plan.max_workers}" if plan.is_elastic else plan.max_workers
    each = f"{plan.cpus_per_worker:g} CPUs and {plan.gpus_per_worker:g} GPUs each"
    nodes = f"{plan.nodes} nodes with {plan.cpus:g} CPUs"
    return Finding("workers", "ok", f"{workers} fit ({each}) on {nodes}")


def _token(config: DoctorConfig) -> Finding:
    """Return whether the cluster asks for a token, and whether others may read the one here."""
    source = access.token_source()
    if source is not None and not access.is_private(source):
        advice = f"chmod 600 {source}"
        return Finding("token", "warning", f"{source} can be read by others", advice)
    address = config.cluster.address or os.environ.get("RAY_ADDRESS", "")
    if not joins_cluster(config.cluster) or not address.rpartition(":")[2].isdigit():
        mode = os.environ.get(access.MODE, "unset")
        if mode == "token":
            return Finding("token", "ok", f"authentication is on, the token is in {source}")
        return _open(f"{access.MODE}={mode}")
    answer = access.ask(address)
    if answer is access.Access.OPEN:
        return _open(answer.value)
    return Finding("token", "ok", f"{answer.value} ({source})")


def _open(found: str) -> Finding:
    return Finding(
        "token", "warning", f"whoever reaches the cluster can run code on it: {found}",
        f"start every node with {access.MODE}=token and one token (ray get-auth-token --generate)",
    )  # fmt: skip
