"""A function run once on every node of the cluster, and what the cluster says of its nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from recon_ray.cluster.workarounds.undocumented import is_head

#: What is put into a node's object store and read back.
TRIAL_BYTES = 8 * 1024**2


@dataclass(frozen=True)
class Node:
    """One living node.

    Attributes:
        identity: Ray's id of it.
        name: Its address, with a number where several nodes share one.
        resources: What it offers (``CPU``, ``GPU``, ``object_store_memory``).
    """

    identity: str
    name: str
    resources: dict[str, float]


def alive_nodes() -> list[Node]:
    """The nodes of the cluster that is joined, the head first."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    alive.sort(key=lambda node: not is_head(node["Resources"]))
    addresses = [node["NodeManagerAddress"] for node in alive]
    nodes = []
    for i, node in enumerate(alive):
        number = addresses[:i].count(addresses[i])
        shared = addresses.count(addresses[i]) > 1
        name = f"{addresses[i]}#{number + 1}" if shared else addresses[i]
        nodes.append(Node(node["NodeID"], name, dict(node["Resources"])))
    return nodes


class NodeVisit:
    """Actors on all nodes, without reserving anything there.

    Args:
        nodes: The nodes.
        timeout_seconds: How long a call may take.
    """

    def __init__(self, nodes: Sequence[Node], *, timeout_seconds: float) -> None:
        self._timeout = timeout_seconds
        self._actors = {
            node.name: ray.remote(_Visitor)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.identity, soft=False),
            )
            .remote()
            for node in nodes
        }

    def run(self, calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]) -> dict[str, Any]:
        """Run a function on every node; what it raised, or TimeoutError, in place of its result.

        Args:
            calls: Name of a node to the function and its arguments.
        """
        pending = {
            name: self._actors[name].run.remote(function, *arguments)
            for name, (function, arguments) in calls.items()
        }
        ray.wait(list(pending.values()), num_returns=len(pending), timeout=self._timeout)
        return {name: _result(reference) for name, reference in pending.items()}

    def clock_offsets(self) -> dict[str, tuple[float, float]]:
        """Seconds by which each node's clock is ahead of this one, and how uncertain that is."""
        offsets = {}
        for name, actor in self._actors.items():
            asked = time.time()
            try:
                there = ray.get(actor.run.remote(time.time), timeout=self._timeout)
            except (ray.exceptions.RayError, TimeoutError):
                continue
            answered = time.time()
            offsets[name] = (there - (asked + answered) / 2, (answered - asked) / 2)
        return offsets


class _Visitor:
    """Runs what it is given."""

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
        return function(*arguments)


def _result(reference: ray.ObjectRef) -> Any:  # noqa: ANN401 - whatever the function gives
    try:
        return ray.get(reference, timeout=0)
    except ray.exceptions.RayTaskError as error:
        return error.cause or error
    except (ray.exceptions.RayError, TimeoutError) as error:
        return error


def store_round_trip() -> float:
    """Put a block into this node's object store, read it back, and give the seconds.

    Raises:
        RuntimeError: If other bytes come back.
    """
    block = np.arange(TRIAL_BYTES // 8)
    started = time.perf_counter()
    same = np.array_equal(ray.get(ray.put(block)), block)
    if not same:
        raise RuntimeError("other bytes came back")
    return time.perf_counter() - started
