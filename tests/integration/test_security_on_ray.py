"""Tokens and ports of what is started here, and of what is joined."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]

#: Starts a local Ray as every job does, and lists who listens where.
LOCAL_RAY = """
import json, os, ray
from recon_ray.cluster.token import ask
from recon_ray.cluster.session import ray_session
from recon_ray.config.sections.common import ClusterSection

def listeners(pids):
    sockets = set()
    for pid in pids:
        try:
            names = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        sockets |= {name[8:-1] for name in names if name.startswith("socket:[")}
    found = []
    for kind in ("tcp", "tcp6"):
        for line in open(f"/proc/net/{kind}").read().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                found.append(fields[1].rpartition(":")[0])
    return found

def children(root):
    parents = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(pid)] = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {root}
    while new := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= new
    return found

with ray_session(ClusterSection()):
    address = ray.get_runtime_context().gcs_address
    print(json.dumps({
        "listen": listeners(children(os.getpid())),
        "with": ask(address).name, "without": ask(address, with_token=False).name,
    }))
"""
#: 127.0.0.1 and ::1 and ::ffff:127.0.0.1, as the kernel writes them.
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def run(command: list[str], environment: dict[str, str], **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False, **more
    )


def test_a_local_ray_asks_for_a_token_and_listens_on_loopback_only(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = run([sys.executable, "-c", LOCAL_RAY], environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["with"] == "GRANTED"
    assert found["without"] == "NO_TOKEN"
    assert len(found["listen"]) > 5
    assert set(found["listen"]) <= LOOPBACK
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text() not in done.stdout + done.stderr


@pytest.mark.parametrize("given", ["none", "wrong"])
def test_a_cluster_with_another_token_is_refused_at_once_by_name(ray_head, tmp_path, given):
    environment = {k: v for k, v in ray_head.environment.items() if not k.startswith("RAY_AUTH")}
    environment["HOME"] = str(tmp_path)
    if given == "wrong":
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    command = [
        sys.executable, str(ROOT / "jobs" / "doctor.py"), f"run.storage={tmp_path}",
        f"cluster.address=127.0.0.1:{ray_head.port}",
    ]  # fmt: skip
    started = time.monotonic()
    done = run(command, environment)
    assert time.monotonic() - started < 60
    assert done.returncode == 2, done.stderr
    complaint = done.stderr.strip().splitlines()[-1]
    assert f"cluster.address=127.0.0.1:{ray_head.port}: the cluster refuses" in complaint
    assert ("this process has none" if given == "none" else "refuses the one here") in complaint
    assert "RAY_AUTH_TOKEN_PATH=<file>" in complaint


def test_the_dashboard_wants_the_token_too(ray_head):
    def status(token: str | None) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{ray_head.dashboard_port}/api/jobs/")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            return urllib.request.urlopen(request, timeout=30).status
        except urllib.error.HTTPError as error:
            return error.code

    right = Path(ray_head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert [status(None), status(secrets.token_hex(32)), status(right)] == [401, 403, 200]


def test_the_doctor_looks_every_node_over_and_fails_where_a_run_would(ray_head, tmp_path):
    command = [
        sys.executable, str(ROOT / "jobs" / "doctor.py"),
        f"cluster.address=127.0.0.1:{ray_head.port}", f"run.storage={tmp_path}/runs",
    ]  # fmt: skip
    done = run([*command, "run.name=well"], ray_head.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "runs" / "well" / "result.json").read_text())
    assert result["counts"] == {"nodes": 1}
    checks = {check["check"]: check for check in result["checks"]}
    assert {"versions", "ops", "storage", "clock", "object store", "token", "workers"} <= set(
        checks
    )
    assert checks["storage"]["places"] == ["driver", "127.0.0.1"]
    assert "requires a token and accepts the one here" in checks["token"]["found"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["well"]

    wrong = ("run.name=ill", "cluster.workers=9", f"doctor.data={tmp_path}/nowhere")
    done = run([*command, *wrong], ray_head.environment)
    assert done.returncode == 1
    assert "a run would break (" in done.stderr
    assert f"{tmp_path}/nowhere: no such folder" in " ".join(done.stdout.split())
    result = json.loads((tmp_path / "runs" / "ill" / "result.json").read_text())
    bad = {check["check"]: check for check in result["checks"] if check["level"] == "error"}
    assert set(bad) == {"data", "workers"}
    assert bad["data"]["places"] == ["driver", "127.0.0.1"]
    assert "they reserve 9 CPUs" in bad["workers"]["found"]
