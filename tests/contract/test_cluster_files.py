"""The files for clusters, as far as a machine without one can check them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from recon_ray.config.loader import load
from recon_ray.tasks.pretrain.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "configs" / "cluster"

STRING, COUNT, BOOL = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": STRING}


def closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """An object that has these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


# What the custom resource definition of ray.io/v1 RayJob says of the fields that are used here, and
# what Kubernetes says of a pod; other fields, misspelt ones above all, are refused.
CONTAINER = closed(
    ("name", "image"),
    name=STRING, image=STRING, workingDir=STRING,
    env={"type": "array"},
    resources=closed(requests=TEXTS, limits=TEXTS),
    volumeMounts={
        "type": "array",
        "items": closed(("name", "mountPath"), name=STRING, mountPath=STRING, readOnly=BOOL),
    },
)  # fmt: skip
VOLUME = closed(
    ("name",),
    name=STRING,
    persistentVolumeClaim=closed(("claimName",), claimName=STRING),
    emptyDir=closed(medium=STRING, sizeLimit=STRING),
)
POD = closed(
    ("spec",),
    metadata={"type": "object"},
    spec=closed(
        ("containers",),
        containers={"type": "array", "items": CONTAINER, "minItems": 1},
        volumes={"type": "array", "items": VOLUME},
        terminationGracePeriodSeconds=COUNT,
    ),
)
HEAD = closed(("rayStartParams", "template"), rayStartParams=TEXTS, template=POD)
WORKERS = closed(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=STRING, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT,
    rayStartParams=TEXTS, template=POD,
)  # fmt: skip
RAY_JOB = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed(("name",), name={"type": "string", "pattern": "^[a-z0-9-]{1,47}$"}),
    spec=closed(
        ("entrypoint", "rayClusterSpec"),
        entrypoint=STRING, runtimeEnvYAML=STRING, backoffLimit=COUNT,
        shutdownAfterJobFinishes=BOOL, ttlSecondsAfterFinished=COUNT, activeDeadlineSeconds=COUNT,
        suspend=BOOL,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        rayClusterSpec=closed(
            ("headGroupSpec",),
            rayVersion=STRING,
            authOptions=closed(("mode",), mode={"enum": ["token", "disabled"]}),
            enableInTreeAutoscaling=BOOL,
            headGroupSpec=HEAD,
            workerGroupSpecs={"type": "array", "items": WORKERS},
        ),
    ),
)  # fmt: skip


@pytest.fixture
def ray_job() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "kuberay-rayjob.yaml").read_text())


def entry_options(command: str) -> list[str]:
    words = shlex.split(command)
    assert words[0] == "python"
    assert (ROOT / words[1]).is_file()
    return [str(ROOT / word) if word.endswith(".yaml") else word for word in words[2:]]


def test_the_ray_job_is_one_and_asks_for_a_token(ray_job: dict[str, Any]) -> None:
    jsonschema.validate(ray_job, RAY_JOB)
    cluster = ray_job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            mounts = container["volumeMounts"]
            assert {mount["name"] for mount in mounts} == volumes
            # Ray keeps objects on disk where /dev/shm has the 64 MiB that Kubernetes gives.
            assert "/dev/shm" in {mount["mountPath"] for mount in mounts}


def test_the_ray_job_runs_an_existing_job_that_fits_its_cluster(ray_job: dict[str, Any]) -> None:
    config = load(PretrainConfig, entry_options(ray_job["spec"]["entrypoint"])).config
    (group,) = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert config.cluster.allowed_workers[0] >= group["minReplicas"]
    assert config.cluster.max_workers == group["maxReplicas"]
    cpus = group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
    assert config.cluster.cpus_per_worker <= float(cpus) - 1  # one is left to read with
    assert {"working_dir", "env_vars"} == set(yaml.safe_load(ray_job["spec"]["runtimeEnvYAML"]))


def test_what_is_shown_for_clusters_of_gpus_does_not_train_on_cpus() -> None:
    for name in ("kuberay-rayjob.yaml", "ray-up.yaml", "slurm.sh"):
        assert "runtime.device=cuda" in (CLUSTER / name).read_text(), name


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayClusterSpec", "authOption"), {"mode": "token"}),
        (("spec", "entryPoint"), "python jobs/pretrain.py"),
        (("kind",), "RayCluster"),
    ],
)
def test_a_misspelt_field_of_the_ray_job_would_be_found(
    ray_job: dict[str, Any], path: tuple[str, ...], value: object
) -> None:
    inner = ray_job
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(ray_job, RAY_JOB)


def test_the_cluster_file_is_what_ray_up_reads() -> None:
    config = yaml.safe_load((CLUSTER / "ray-up.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "head_start_commands": []}, schema)
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))
    assert config["head_node_type"] in config["available_node_types"]
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    for command in (command for command in starts if "ray start" in command):
        assert command.startswith("RAY_AUTH_MODE=token ray start")
    assert "~/.ray/auth_token" in config["file_mounts"]


SLURM = CLUSTER / "slurm.sh"


def test_the_slurm_script_parses() -> None:
    assert os.access(SLURM, os.X_OK)
    subprocess.run(["bash", "-n", str(SLURM)], check=True)


def test_the_slurm_script_has_no_finding_of_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", str(SLURM)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Commands of a Slurm of two nodes that run everything here, and write down what they run."""
    fake = {
        "scontrol": 'echo "scontrol $*" >>"$CALLS"; [[ $1 == show ]] && printf "a\\nb\\n"; true',
        "srun": """
            echo "srun $*" >>"$CALLS"
            while [[ $1 == --* ]]; do shift; done
            [[ $1 == hostname ]] && echo 127.0.0.1 && exit
            exec sleep 60""",
        "python": f"""
            if [[ $1 == -c ]]; then exec {sys.executable} "$@"; fi
            if [[ $* == *"list nodes"* ]]; then
                echo '[{{"state": "ALIVE"}}, {{"state": "ALIVE"}}]'; exit
            fi
            echo "python $*" >>"$CALLS"
            stat -c '%a' "$RAY_AUTH_TOKEN_PATH" >>"$CALLS"
            umask >>"$CALLS"
            if [[ $* == *deaf* ]]; then trap '' TERM; sleep 30; fi
            if [[ $* == *wait* ]]; then
                trap 'echo committed >>"$CALLS"; exit 143' TERM; sleep 30 & wait; fi
            exit "${{STATUS:-0}}" """,
    }
    for name, body in fake.items():
        path = tmp_path / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    return {
        **os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"), "RECON_PYTHON": str(tmp_path / "python"),
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "a,b", "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_PER_TASK": "1",
    }  # fmt: skip


def test_slurm_starts_nodes_once_and_gives_the_status(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        ["bash", str(SLURM), "jobs/pretrain.py", "run.name=x"],
        env={**slurm, "STATUS": "3"}, capture_output=True, text=True, timeout=60, check=False,
        umask=0o027,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    calls = (tmp_path / "calls").read_text()
    starts = [line for line in calls.splitlines() if " start " in line]
    assert [("--nodelist=a" in line, "--head" in line) for line in sorted(starts)] == [
        (True, True), (False, False),
    ]  # fmt: skip
    assert all("--num-cpus=8 --num-gpus=1" in line for line in starts)
    assert (
        "python jobs/pretrain.py run.name=x cluster.address=127.0.0.1:24711\n600\n0027\n" in calls
    )
    assert "requeue" not in calls
    assert list(tmp_path.glob(".ray-token*")) == []  # nothing of it is left


@pytest.mark.parametrize(("name", "says"), [("wait", "committed"), ("deaf", "0022")])
def test_the_slurm_script_queues_the_job_again_before_its_time_is_up_whether_it_commits_or_not(
    slurm: dict[str, str], tmp_path: Path, name: str, says: str
) -> None:
    process = subprocess.Popen(
        ["bash", str(SLURM), "jobs/pretrain.py", f"run.name={name}"],
        env={**slurm, "RECON_COMMIT_SECONDS": "2"}, umask=0o022,
    )  # fmt: skip
    calls = tmp_path / "calls"
    for _ in range(100):
        if calls.exists() and "0022" in calls.read_text():
            break
        subprocess.run(["sleep", "0.1"], check=True)
    subprocess.run(["sleep", "0.3"], check=True)
    process.send_signal(10)  # SIGUSR1
    assert process.wait(20) == 0
    assert calls.read_text().splitlines()[-2:] == [says, "scontrol requeue 4711"]


def test_the_slurm_script_without_a_job_says_how_it_is_used() -> None:
    done = subprocess.run(["bash", str(SLURM)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch")
