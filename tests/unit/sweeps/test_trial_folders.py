"""Finished, stopped and failed trials, and the progress that counts them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from recon_ray.sweeps.trial_folders import TrialFolders
from recon_ray.sweeps.trial_progress import TrialProgress


def test_only_whole_results_count(tmp_path: Path) -> None:
    folders = TrialFolders(str(tmp_path))
    assert folders.status("a") == "waiting"
    folders.mark_failed("a", "no", "Traceback")
    assert (folders.status("a"), folders.failure("a")) == ("failed", "no")
    folders.clear("a")
    assert folders.status("a") == "waiting"
    for content in ("{", "[]", json.dumps({"status": "running"})):
        folders.folder("a").write("result.json", content)
        assert folders.status("a") == "waiting"
    folders.folder("a").write("result.json", json.dumps({"status": "done"}))
    folders.mark_failed("a", "an earlier attempt")
    assert folders.status("a") == "done"
    folders.mark_stopped("b", {"epoch": 2})
    assert (folders.status("b"), folders.stopped("b")) == ("stopped", {"epoch": 2})


def test_threads_are_those_of_the_first_trial_that_began(tmp_path: Path) -> None:
    folders = TrialFolders(str(tmp_path))
    assert folders.agreed_threads(["a", "b", "c"], 7) == 7
    folders.folder("c").write("config.yaml", "runtime: {threads: 1}\n")
    folders.folder("b").write("config.yaml", "runtime: {threads: null}\n")
    folders.folder("a").write("config.yaml", "runtime: [")
    assert [folders.threads(name) for name in ("a", "b", "c", "d")] == [None, 0, 1, None]
    assert folders.agreed_threads(["a", "c", "b"], 7) == 1
    assert folders.agreed_threads(["a", "b", "c"], 7) == 0


def test_names_are_those_of_trials_that_began(tmp_path: Path) -> None:
    folders = TrialFolders(str(tmp_path))
    assert folders.names() == []
    folders.folder("b").write("config.yaml", "x: 1\n")
    folders.mark_failed("a", "before it began")
    assert folders.names() == ["b"]


def test_the_progress_keeps_the_best_by_mode(caplog: pytest.LogCaptureFixture) -> None:
    for mode, best in (("max", "b"), ("min", "a")):
        progress = TrialProgress(5, "accuracy", mode)
        for name, value in (("a", 0.1), ("b", 0.3), ("c", 0.3)):
            progress.started(name)
            progress.done(name, {"accuracy": value})
        assert progress.best is not None
        assert progress.best[1] == best
    progress.started("d")
    progress.progressed("d", {"epoch": 3, "val/accuracy": 0.25})
    assert str(progress).startswith(
        "3/5 trials ended, 1 running, best accuracy 0.1 (a), d epoch 3 val/accuracy 0.25 ["
    )
    progress.started("e")
    with caplog.at_level(logging.INFO):
        progress.stopped("e", "epoch 3: below the others")
    assert "trial e was stopped early, epoch 3: below the others" in caplog.text
    with caplog.at_level(logging.WARNING):
        progress.broke("d", "no memory")
    assert "trial d failed: no memory" in caplog.text
    with caplog.at_level(logging.INFO):
        progress.close()
    assert caplog.messages[-1].startswith(
        "5/5 trials ended, 0 running, 1 failed, best accuracy 0.1 (a) ["
    )
