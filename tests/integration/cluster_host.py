"""The process that holds the nodes of a cluster; takes one JSON command a line, answers with one.

A process of its own, as Ray reads the environment for its cluster when it is imported.
"""

from __future__ import annotations

import json
import sys
import time

from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

PREEMPTION = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")


def main() -> None:
    options = json.loads(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args=options)
    nodes = {"0": cluster.head_node}
    answer(port=int(cluster.address.rpartition(":")[2]), **described(cluster.head_node))
    for line in sys.stdin:
        command = json.loads(line)
        kind = command.pop("do")
        if kind == "add":
            node = cluster.add_node(**command)
            name = str(max(map(int, nodes)) + 1)
            nodes[name] = node
            answer(name=name, **described(node))
        elif kind == "remove":
            cluster.remove_node(nodes.pop(command["name"]), allow_graceful=command["gracefully"])
            answer()
        elif kind == "drain":
            deadline = int((time.time() + command["seconds"]) * 1000)
            client = GcsClient(address=cluster.address)
            accepted, why = client.drain_node(
                nodes[command["name"]].node_id, PREEMPTION, "test", deadline
            )
            answer(accepted=accepted, why=why)
    cluster.shutdown()


def described(node) -> dict[str, object]:
    """What the tests need of a node."""
    kinds = node.all_processes
    return {"raylet": kinds["raylet"][0].process.pid, "id": node.node_id}


def answer(**values: object) -> None:
    sys.stdout.write(f"ANSWER {json.dumps(values)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
