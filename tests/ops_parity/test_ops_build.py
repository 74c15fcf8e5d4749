"""The build decides by itself whether it has CUDA, and says in one sentence what is missing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SETUP = Path(__file__).resolve().parents[2] / "ops" / "setup.py"
MAJOR = (torch.version.cuda or "0").split(".")[0]


def toolkit(folder: Path, release: str) -> Path:
    """A CUDA toolkit that can tell its version and nothing else."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    return folder


def build(**changes: str) -> tuple[int, str]:
    """Run the build up to its decisions: exit status and what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "RECON_OPS_CUDA"}
    done = subprocess.run(
        [sys.executable, str(SETUP), "--version"],
        cwd=SETUP.parent, env={**environment, **changes}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_missing_compiler_is_named() -> None:
    status, output = build(CXX="no-such-compiler")
    assert status == 1
    assert "no C++ compiler 'no-such-compiler' found; install g++" in output
    assert "Traceback" not in output


def test_an_unknown_switch_is_refused() -> None:
    assert "RECON_OPS_CUDA must be 0 or 1, found 'yes'" in build(RECON_OPS_CUDA="yes")[1]


def test_the_cpu_can_be_forced() -> None:
    status, output = build(RECON_OPS_CUDA="0")
    assert status == 0
    assert "building for the CPU alone" in output


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
def test_the_toolkit_must_have_the_major_version_of_torch(tmp_path: Path) -> None:
    good, bad = toolkit(tmp_path / "good", f"{MAJOR}.9"), toolkit(tmp_path / "bad", "9.2")
    status, output = build(CUDA_HOME=str(good))
    assert status == 0
    assert f"CUDA_HOME {good}, nvcc {MAJOR}.9" in output
    status, output = build(CUDA_HOME=str(bad))
    assert status == 1
    assert f"is CUDA 9.2 but torch was built for CUDA {torch.version.cuda}" in output
    assert "Traceback" not in output


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
def test_a_toolkit_without_compiler_builds_for_the_cpu_unless_insisted(tmp_path: Path) -> None:
    assert "building for the CPU alone" in build(CUDA_HOME=str(tmp_path))[1]
    status, output = build(CUDA_HOME=str(tmp_path), RECON_OPS_CUDA="1")
    assert status == 1
    assert f"no working nvcc in {tmp_path}; set CUDA_HOME" in output


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
def test_a_wrapper_on_the_path_leads_to_the_real_toolkit(tmp_path: Path) -> None:
    home = toolkit(tmp_path / "toolkit", f"{MAJOR}.1")
    wrapper = toolkit(tmp_path / "wrapper", "1.0") / "bin" / "nvcc"
    wrapper.write_text(f"#!/bin/sh\necho '#$ TOP={home}/bin/..' >&2\n")
    path = f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}"
    assert f"CUDA_HOME {home}, nvcc {MAJOR}.1" in build(PATH=path, CUDA_HOME="", CUDA_PATH="")[1]
