"""The driver of ``jobs/doctor.py``."""

from __future__ import annotations

import logging
import os
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict

from recon_ray.cluster import token as access
from recon_ray.cluster.placement import plan_workers
from recon_ray.cluster.session import joins_cluster, ray_session
from recon_ray.doctor.config import DoctorConfig
from recon_ray.doctor.findings import Finding, format_table, gather
from recon_ray.doctor.machine_checks import MachineRequest, inspect_machine, versions
from recon_ray.doctor.node_checks import Node, NodeActors, alive_nodes, store_round_trip
from recon_ray.doctor.storage_checks import driver_probe, inspect_data, inspect_storage
from recon_ray.errors import ConfigError, ReconError
from recon_ray.points import ops
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import start_run

logger = logging.getLogger(__name__)

DRIVER = "driver"


def doctor(job: Job[DoctorConfig]) -> JobResult:
    """Check everything, print one table, and fail where a run would break."""
    config = job.config
    if job.dry_run:
        return JobResult("dry run: would check the driver and every node; nothing was run")
    with ray_session(config.cluster) if config.cluster.workers else nullcontext():
        nodes = alive_nodes() if config.cluster.workers else []
        logger.info("checking the driver and %d nodes", len(nodes))
        found = examine(config, nodes)
    rows = gather(found)
    table = format_table(rows, len(found))
    wrong = dict.fromkeys(row.check for row in rows if row.level == "error")
    failure = None
    if wrong:
        failure = f"a run would break ({', '.join(wrong)}); see the table for what to do"
    try:
        run = start_run("doctor", config, label="check")
    except ReconError:  # the table has a row about the storage
        return JobResult(table, failure=failure)
    levels = Counter(row.level for row in rows)
    written = run.finish(
        {"errors": float(levels["error"]), "warnings": float(levels["warning"])},
        table=table,
        selection="all checks; errors would break a run, warnings slow it down",
        counts={"nodes": len(found) - 1},
        checks=[asdict(row) for row in rows],
    )
    return JobResult(table, written.result_path, failure)


def examine(config: DoctorConfig, nodes: list[Node]) -> dict[str, list[Finding]]:
    """Return the findings of the driver and of every node, by the name of the place."""
    with driver_probe(config.run.storage) as (probe, finding):
        found = inspect_machine(MachineRequest({}, config.runtime.ops_backend, ""))
        found += [finding, *inspect_data(config.doctor.data or "")]
        found += [_token(config)] if config.cluster.workers else []
        found += [_plan(config)] if nodes else []
        return {DRIVER: found, **(_visit(config, nodes, probe) if nodes else {})}


def _visit(config: DoctorConfig, nodes: list[Node], probe: str) -> dict[str, list[Finding]]:
    storage, data = config.run.storage, config.doctor.data or ""
    actors = NodeActors(nodes, timeout_seconds=config.doctor.timeout_seconds)
    calls = {}
    for node in nodes:
        store, gpus = node.resources.get("object_store_memory", 0), node.resources.get("GPU", 0.0)
        driver = (versions(), config.runtime.ops_backend, ops.backend())
        calls[node.name] = (MachineRequest(*driver, int(store), gpus), storage, probe, data)
    found = {
        name: answer if isinstance(answer, list) else [_no_answer(answer)]
        for name, answer in actors.run(check_node, calls).items()
    }
    offsets = actors.clock_offsets()
    stores = actors.run(store_round_trip, dict.fromkeys(offsets, ()))
    for name, (ahead, uncertain) in offsets.items():
        found[name].append(_clock(ahead, uncertain, config.doctor.clock_seconds))
        found[name].append(_store(stores[name]))
    return found


def check_node(request: MachineRequest, storage: str, probe: str, data: str) -> list[Finding]:
    """Run all checks of a node, there."""
    return [*inspect_machine(request), inspect_storage(storage, probe), *inspect_data(data)]


def _reason(answer: object) -> str:
    return str(answer).strip().partition("\n")[0] or type(answer).__name__


def _no_answer(answer: object) -> Finding:
    advice = "is recon_ray installed there, with what it needs? see the node's Ray logs"
    return Finding("answer", "error", f"the node did not answer: {_reason(answer)}", advice)


def _clock(ahead: float, uncertain: float, tolerance: float) -> Finding:
    if abs(ahead) - uncertain > tolerance:
        state = f"{ahead:+.1f} s beside the driver's"
        return Finding("clock", "error", state, "synchronize the clocks (chrony, ntpd)")
    return Finding("clock", "ok", f"within {tolerance:g} s of the driver's")


def _store(answer: object) -> Finding:
    if isinstance(answer, float):
        slow = f", in {answer:.1f} s" if answer > 1 else ""
        return Finding("object store", "ok", f"8 MiB written and read{slow}")
    advice = "start the node with a larger --object-store-memory"
    return Finding("object store", "error", _reason(answer), advice)


def _plan(config: DoctorConfig) -> Finding:
    """Check whether ``cluster.workers`` would fit."""
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
    """Check whether the cluster requires a token, and whether others may read the one here."""
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
