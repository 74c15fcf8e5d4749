"""Fixtures of the bad input: jobs in a folder of their own, a set to damage, a finished run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from job_runs import QUICK, Jobs

from recon_ray.cli import run_job
from recon_ray.config.help import dump_yaml
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.tasks import run_figures as figures
from recon_ray.tasks.pretrain.config import PretrainConfig


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Keep the logging of the test process and its temporary folder apart."""
    monkeypatch.delenv("RECON_DEBUG", raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    root, own = logging.getLogger(), logging.getLogger("recon_ray")
    handlers, level = list(root.handlers), own.level
    yield
    root.handlers[:] = handlers
    own.setLevel(level)
    assert list((tmp_path / "temporary").glob("*.traceback.txt")) == []


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else that these runs do, and is tested elsewhere."""
    monkeypatch.setattr(figures, "draw_pretraining", lambda *_: None)
    monkeypatch.setattr(figures, "draw_classification", lambda *_: None)


@pytest.fixture
def jobs(tiny_config: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Jobs:
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_yaml(tiny_config))
    return Jobs(tmp_path, config, capsys)


@pytest.fixture
def copy(tiny_prepared: PreparedSet, tmp_path: Path) -> Path:
    """A prepared set to damage."""
    return shutil.copytree(tiny_prepared.path, tmp_path / "copy")


@pytest.fixture(scope="session")
def one_step(
    tiny_config_in: Callable[[Path], PretrainConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run of one step, to copy."""
    folder = tmp_path_factory.mktemp("one_step")
    config = folder / "tiny.yaml"
    config.write_text(dump_yaml(tiny_config_in(folder / "runs")))
    arguments = [str(config), *QUICK]
    assert run_job("pretrain", arguments) == 0
    return folder / "runs" / "run"


@pytest.fixture
def finished(jobs: Jobs, one_step: Path) -> Path:
    """The folder of a run of one step."""
    return shutil.copytree(one_step, jobs.runs / "run")
