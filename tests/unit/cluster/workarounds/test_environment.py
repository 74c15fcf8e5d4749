"""Every variable that is set is one that the installed Ray reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from recon_ray.cluster.workarounds import environment

#: Folders of Ray that read the variables; the rest is large.
FOLDERS = ("_private", "_common", "data/_internal", "train/v2", "tune")


def names() -> set[str]:
    found = {*environment.JOB, *environment.LOCAL_CLUSTER, *environment.TUNE}
    return found | {environment.START_TIMEOUT}


def test_ray_reads_each_of_them() -> None:
    def texts() -> Iterator[str]:
        for folder in FOLDERS:
            for path in (Path(ray.__file__).parent / folder).rglob("*.py"):
                yield path.read_text(encoding="utf-8")

    unread = names() - {"MALLOC_ARENA_MAX"}  # of glibc
    for text in texts():
        unread -= {name for name in unread if name in text}
    assert unread == set(), "Ray has dropped or renamed them"


def test_values_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "1")
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "")
    monkeypatch.delenv("RAY_CHDIR_TO_TRIAL_DIR")
    environment.set_environment({"RAY_AIR_NEW_OUTPUT": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"})
    assert os.environ["RAY_AIR_NEW_OUTPUT"] == "1"
    assert os.environ["RAY_CHDIR_TO_TRIAL_DIR"] == "0"
