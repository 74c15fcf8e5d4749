"""What counts as a finished trial, and how the board tells of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from recon_ray.sweeps.trial_folders import Ledger
from recon_ray.sweeps.trial_progress import TrialProgress


def test_only_whole_results_count(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    assert ledger.status("a") == "waiting"
    ledger.mark_failed("a", "no", "Traceback")
    assert (ledger.status("a"), ledger.failure("a")) == ("failed", "no")
    ledger.clear("a")
    assert ledger.status("a") == "waiting"
    for content in ("{", "[]", json.dumps({"status": "running"})):
        ledger.folder("a").write("result.json", content)
        assert ledger.status("a") == "waiting"
    ledger.folder("a").write("result.json", json.dumps({"status": "done"}))
    ledger.mark_failed("a", "an earlier attempt")
    assert ledger.status("a") == "done"
    ledger.mark_stopped("b", {"epoch": 2})
    assert (ledger.status("b"), ledger.stopped("b")) == ("stopped", {"epoch": 2})


def test_names_are_those_of_trials_that_began(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    assert ledger.names() == []
    ledger.folder("b").write("config.yaml", "x: 1\n")
    ledger.mark_failed("a", "before it began")
    assert ledger.names() == ["b"]


def test_the_board_keeps_the_best_by_mode(caplog: pytest.LogCaptureFixture) -> None:
    for highest, best in ((True, "b"), (False, "a")):
        board = TrialProgress(4, "accuracy", highest)
        for name, value in (("a", 0.1), ("b", 0.3), ("c", 0.3)):
            board.started(name)
            board.done(name, {"accuracy": value})
        assert board.best is not None
        assert board.best[1] == best
    board.started("d")
    board.progressed("d", {"epoch": 3, "val/accuracy": 0.25})
    assert any("d  epoch 3 val/accuracy 0.25" in line for line in board.table())
    with caplog.at_level(logging.WARNING):
        board.broke("d", "no memory")
    assert "trial d failed: no memory" in caplog.text
    assert board.summary().startswith(
        "4/4 trials ended, 0 running, 1 failed, best accuracy 0.1 (a)"
    )
