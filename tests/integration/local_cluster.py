"""A Ray cluster of several nodes on this machine: on loopback, with a token, for jobs to join."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOST = Path(__file__).with_name("cluster_host.py")
STORE_BYTES = 100_000_000
PIPED = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def processes() -> list[tuple[int, int, str]]:
    """Id, parent and title of every process."""
    result = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                title = (entry / "cmdline").read_text().replace("\0", " ")
            except (OSError, ValueError):
                continue
            result.append((int(entry.name), parent, title))
    return result


def descendants(root: int, name: str = "") -> list[int]:
    """Process ids below one, of those whose title starts with a name."""
    found = processes()
    parents = {pid: parent for pid, parent, _ in found}
    below = []
    for pid, _, title in found:
        ancestor = pid
        while ancestor in parents and ancestor != root:
            ancestor = parents[ancestor]
        if pid != root and ancestor == root and title.startswith(name):
            below.append(pid)
    return below


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen, seconds: float = 240
) -> None:
    """Wait for what a process does; fail where it ends before, and kill it when time is over.

    The time is long, as a busy machine takes minutes to start a Ray job.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"waited for {seconds:g} s in vain", process.communicate())
        time.sleep(0.02)


def ray_environment(folder: Path) -> dict[str, str]:
    """Environment of a private Ray: a token of its own, everything on loopback."""
    (folder / "ray").mkdir()
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "120",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
    }


@dataclass(frozen=True)
class Node:
    """One node of the cluster."""

    name: str
    raylet: int

    def workers(self, title: str = "ray::RayTrainWorker") -> list[int]:
        """Ids of its processes with such a title."""
        return descendants(self.raylet, title)


@dataclass
class LocalCluster:
    """A head, and nodes that come and go: ``ray.cluster_utils.Cluster`` in its own process."""

    folder: Path
    environment: dict[str, str]
    host: subprocess.Popen
    port: int = 0
    dashboard_port: int = 0
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where jobs join it."""
        return f"127.0.0.1:{self.port}"

    @classmethod
    def start(cls, *, cpus: int, store_bytes: int = STORE_BYTES) -> LocalCluster:
        """Start the head and wait until it answers.

        With a dashboard, which Ray Train asks before it frees what a killed job had reserved.
        """
        folder = Path(tempfile.mkdtemp(prefix="rr"))  # short: Ray puts sockets below it
        environment = ray_environment(folder)
        port, dashboard_port, agent = free_ports(3)
        options: dict[str, Any] = {
            "num_cpus": cpus, "object_store_memory": store_bytes, "gcs_server_port": port,
            "include_dashboard": True, "dashboard_port": dashboard_port,
            "dashboard_agent_listen_port": agent, "dashboard_host": "127.0.0.1",
        }  # fmt: skip
        host = subprocess.Popen(
            [sys.executable, str(HOST), json.dumps(options)],
            env=environment, cwd=folder, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=(folder / "host.log").open("w"),
        )  # fmt: skip
        cluster = cls(folder, environment, host, dashboard_port=dashboard_port)
        try:
            head = cluster._answer()
        except BaseException:
            cluster.shut_down()
            raise
        cluster.port = head["port"]
        cluster.nodes.append(Node("0", head["raylet"]))
        return cluster

    def add_node(self, *, cpus: int, store_bytes: int = STORE_BYTES) -> Node:
        """Start a further node and wait until the head knows it."""
        (agent,) = free_ports(1)
        found = self._do(
            "add", num_cpus=cpus, object_store_memory=store_bytes,
            dashboard_agent_listen_port=agent,
        )  # fmt: skip
        self.nodes.append(Node(found["name"], found["raylet"]))
        return self.nodes[-1]

    def remove_node(self, node: Node, *, gracefully: bool = False) -> None:
        """End a node, by default without warning."""
        below = descendants(node.raylet)
        self._do("remove", name=node.name, gracefully=gracefully)
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.nodes.remove(node)

    def drain(self, node: Node, *, seconds: float) -> None:
        """Announce that a node will end, as a cloud's notice of preemption."""
        found = self._do("drain", name=node.name, seconds=seconds)
        assert found["accepted"], found

    def shut_down(self) -> None:
        """End all nodes."""
        below = descendants(self.host.pid)
        assert self.host.stdin is not None
        with contextlib.suppress(OSError):
            self.host.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.host.wait(15)
        for pid in (self.host.pid, *below):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.host.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _do(self, kind: str, **options: object) -> dict[str, Any]:
        assert self.host.stdin is not None
        self.host.stdin.write(json.dumps({"do": kind, **options}) + "\n")
        self.host.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.host.stdout is not None
        for line in self.host.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise AssertionError((self.folder / "host.log").read_text())
