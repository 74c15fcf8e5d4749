"""Undocumented names and texts, looked up where Ray defines them."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.core.generated import gcs_service_pb2
from ray.train import RunConfig
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext

from recon_ray.cluster.workarounds import undocumented
from recon_ray.runs.folder import RunFolder


def test_the_head_answers_the_call() -> None:
    service, method = undocumented.CHECK_ALIVE.removeprefix("/ray.rpc.").split("/")
    services = gcs_service_pb2.DESCRIPTOR.services_by_name
    assert method in services[service].methods_by_name


def test_the_text_of_a_kill_for_memory_is_still_that() -> None:
    raylet = Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet"
    assert undocumented.KILLED_FOR_MEMORY.encode() in raylet.read_bytes()


def test_a_damaged_list_of_checkpoints_still_ends_the_start(tmp_path: Path) -> None:
    """Without this, removing the list can go."""
    assert undocumented.SNAPSHOT == CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
    snapshot = tmp_path / "checkpoints" / undocumented.SNAPSHOT
    snapshot.parent.mkdir()
    snapshot.write_text("{")
    config = RunConfig(name="checkpoints", storage_path=str(tmp_path))
    storage = StorageContext(storage_path=str(tmp_path), experiment_dir_name="checkpoints")
    with pytest.raises(Exception, match="Expecting property name"):
        CheckpointManager(config.checkpoint_config, storage)
    undocumented.remove_snapshot(RunFolder(str(tmp_path)))
    assert not snapshot.exists()
    CheckpointManager(config.checkpoint_config, storage)


def test_the_head_is_marked_by_a_resource() -> None:
    assert undocumented.is_head({"CPU": 1.0, HEAD_NODE_RESOURCE_NAME: 1.0})
    assert not undocumented.is_head({"CPU": 1.0})


def test_a_submitted_driver_is_known_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RAY_JOB_CONFIG_JSON_ENV_VAR, raising=False)
    assert not undocumented.is_submitted()
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")
    assert undocumented.is_submitted()
