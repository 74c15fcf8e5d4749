"""One Ray head for the whole folder, on loopback, with its own folder, ports and token."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from local_cluster import PIPED, descendants, free_ports, ray_environment

from recon_ray.cli import run_job
from recon_ray.config.help import dump_yaml
from recon_ray.tasks.pretrain.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[2]
CPUS = 4


@dataclass(frozen=True)
class Head:
    """A running Ray head and how to reach it."""

    process: subprocess.Popen
    port: int
    dashboard_port: int
    environment: dict[str, str]

    def descendants(self, name: str) -> list[int]:
        """Process ids below the head whose title starts with a name."""
        return descendants(self.process.pid, name)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="rr"))  # short: Ray puts sockets below it
    environment = ray_environment(folder)
    port, dashboard, agent = free_ports(3)
    command = [
        "ray", "start", "--head", "--block", f"--port={port}", f"--num-cpus={CPUS}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--disable-usage-stats",
        f"--dashboard-agent-listen-port={agent}",
        "--object-store-memory=150000000",
    ]  # fmt: skip
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    head = Head(process, port, dashboard, environment)
    try:
        _wait_for_port(process, dashboard, folder / "head.log")
        yield head
    finally:
        started = head.descendants("")  # workers have process groups of their own
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        for pid in (process.pid, *started):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_port(process: subprocess.Popen, port: int, log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    pytest.fail(f"the Ray head did not answer:\n{log.read_text()}")


@dataclass(frozen=True)
class JobRunner:
    """Runs jobs/pretrain.py with the tiny configuration."""

    config: Path
    storage: Path
    environment: dict[str, str]

    def command(self, name: str, *overrides: str) -> list[str]:
        """The command line of a run."""
        job = str(ROOT / "jobs" / "pretrain.py")
        return [sys.executable, job, str(self.config), f"run.name={name}", *overrides]

    def start(self, name: str, *overrides: str) -> subprocess.Popen:
        """Start a run."""
        return subprocess.Popen(
            self.command(name, *overrides), env=self.environment, cwd=self.storage, **PIPED
        )

    def finish(self, name: str, *overrides: str, status: int = 0) -> str:
        """Run to the end and give standard error; fail on another exit status."""
        process = self.start(name, *overrides)
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, f"exit {process.returncode}\n{err}\n{out}"
        if status == 0:
            assert out.rstrip().splitlines()[-1].endswith(f"{name}/result.json")
        return err

    def here(self, name: str, *overrides: str) -> None:
        """Run to the end in this process, without Ray."""
        given = [str(self.config), f"run.name={name}", *overrides, "cluster.workers=0"]
        assert run_job("pretrain", given) == 0

    def folder(self, name: str) -> Path:
        """The folder of a run."""
        return self.storage / name


@pytest.fixture
def runner(ray_head: Head, tiny_config: PretrainConfig, tmp_path: Path) -> JobRunner:
    """Runs the tiny pre-training on the head, with two workers by default."""
    storage = tmp_path / "runs"
    storage.mkdir()
    update = {
        "run": tiny_config.run.model_copy(update={"storage": str(storage)}),
        "cluster": tiny_config.cluster.model_copy(
            update={"workers": 2, "address": f"127.0.0.1:{ray_head.port}"}
        ),
    }
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_yaml(tiny_config.model_copy(update=update)))
    environment = {k: v for k, v in ray_head.environment.items() if not k.startswith("RAY_AUTH")}
    # The jobs find out by themselves that the head asks for a token.
    token = Path(ray_head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    environment |= {"RAY_AUTH_TOKEN": token, "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
    return JobRunner(config, storage, environment)
