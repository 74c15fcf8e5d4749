"""Nodes of the cluster, and functions that run on all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from recon_ray.cluster.workarounds.undocumented import is_head

#: Size of the block that is put into a node's object store and read back.
TRIAL_BYTES = 8 * 1024**2


@dataclass(frozen=True)
class Node:
    """A living node.

    Attributes:
        identity: Its id in Ray.
        name: Its address, with a number where several nodes share one.
        resources: Its resources (``CPU``, ``GPU``, ``object_store_memory``).
    """

    identity: str
    name: str
    resources: dict[str, float]


def alive_nodes() -> list[Node]:
    """List the nodes of the cluster that this process has joined, the head first."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    alive.sort(key=lambda node: not is_head(node["Resources"]))
    addresses = [node["NodeManagerAddress"] for node in alive]
    nodes = []
    for i, (node, name) in enumerate(zip(alive, addresses, strict=True)):
        number = f"#{addresses[:i].count(name) + 1}" if addresses.count(name) > 1 else ""
        nodes.append(Node(node["NodeID"], name + number, dict(node["Resources"])))
    return nodes


class NodeActors:
    """An actor on every node; it reserves no resources, and a call may take ``timeout_seconds``."""

    def __init__(self, nodes: Sequence[Node], *, timeout_seconds: float) -> None:
        self._timeout = timeout_seconds
        self._actors = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node.identity, soft=False)
            actor = ray.remote(_Caller).options(num_cpus=0, scheduling_strategy=there)
            self._actors[node.name] = actor.remote()

    def run(
        self, function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]]
    ) -> dict[str, Any]:
        """Call a function on nodes at once, with arguments by the name of the node.

        Returns:
            Name of a node to the result, or to the exception (TimeoutError without an answer).
        """
        pending = {
            name: self._actors[name].run.remote(function, *given)
            for name, given in arguments.items()
        }
        ray.wait(list(pending.values()), num_returns=len(pending), timeout=self._timeout)
        return {name: _result(reference) for name, reference in pending.items()}

    def clock_offsets(self) -> dict[str, tuple[float, float]]:
        """Return how far each node's clock is ahead of this one, and the uncertainty, in seconds.

        Nodes that do not answer are left out.
        """
        offsets = {}
        for name in self._actors:
            asked = time.time()
            there = self.run(time.time, {name: ()})[name]
            answered = time.time()
            if isinstance(there, float):
                offsets[name] = (there - (asked + answered) / 2, (answered - asked) / 2)
        return offsets


class _Caller:
    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
        return function(*arguments)


def _result(reference: ray.ObjectRef) -> Any:  # noqa: ANN401 - any function's result
    try:
        return ray.get(reference, timeout=0)
    except ray.exceptions.RayTaskError as error:
        return error.cause or error
    except (ray.exceptions.RayError, TimeoutError) as error:
        return error


def store_round_trip() -> float:
    """Put a block into this node's object store, read it back, and return the seconds.

    Raises:
        RuntimeError: If other bytes come back.
    """
    block = np.arange(TRIAL_BYTES // 8)
    started = time.perf_counter()
    if not np.array_equal(ray.get(ray.put(block)), block):
        raise RuntimeError("other bytes came back")
    return time.perf_counter() - started
