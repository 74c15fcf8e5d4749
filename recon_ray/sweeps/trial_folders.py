"""Run folders of the trials of a sweep, whose files are the only record of their state.

``trials/<name>/`` is done when its ``result.json`` is there, was stopped early when
``stopped.json`` is, failed when ``failure.txt`` is, and is to be run otherwise. So a killed sweep
continues where its files stand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from pyarrow.fs import FileSelector

from recon_ray.runs.folder import RunFolder
from recon_ray.storage import join, open_filesystem

Status = Literal["done", "stopped", "failed", "waiting"]
RESULT, STOPPED, FAILURE = "result.json", "stopped.json", "failure.txt"


@dataclass(frozen=True)
class TrialFolders:
    """Folders of the trials.

    Attributes:
        uri: Folder or URI of the sweep's run.
    """

    uri: str

    @property
    def storage(self) -> str:
        """``run.storage`` of the trials."""
        return join(self.uri, "trials")

    def folder(self, name: str) -> RunFolder:
        """Return the run folder of a trial."""
        return RunFolder(join(self.storage, name))

    def names(self) -> list[str]:
        """Return the sorted names of the trials that were begun: those with a ``config.yaml``."""
        filesystem, root = open_filesystem(self.storage)
        selector = FileSelector(root, allow_not_found=True)
        found = [entry.base_name for entry in filesystem.get_file_info(selector)]
        return sorted(name for name in found if self.folder(name).read("config.yaml") is not None)

    def status(self, name: str) -> Status:
        """Return the state of a trial."""
        if self.result(name) is not None:
            return "done"
        if self.stopped(name) is not None:
            return "stopped"
        return "waiting" if self.failure(name) is None else "failed"

    def has_ended(self, name: str) -> bool:
        """Return whether a trial is done or was stopped early, so that it is not run again."""
        return self.status(name) in ("done", "stopped")

    def result(self, name: str) -> dict[str, Any] | None:
        """Return ``result.json`` of a finished trial, else None; a half-written one is ignored."""
        found = self._record(name, RESULT)
        return found if found is not None and found.get("status") == "done" else None

    def stopped(self, name: str) -> dict[str, Any] | None:
        """Return what a trial had reached when it was stopped early, else None."""
        return self._record(name, STOPPED)

    def failure(self, name: str) -> str | None:
        """Return what a trial failed with, in one sentence, else None."""
        text = self.folder(name).read(FAILURE)
        return None if text is None else text.partition("\n")[0]

    def threads(self, name: str) -> int | None:
        """Return the threads in the configuration of a trial, 0 without; None before it begins."""
        try:
            content = yaml.safe_load(self.folder(name).read("config.yaml") or "")
            return content["runtime"]["threads"] or 0
        except (yaml.YAMLError, KeyError, TypeError):
            return None

    def agreed_threads(self, names: Iterable[str], otherwise: int) -> int:
        """Return the threads of the first of the trials that was begun: all have the same."""
        found = (self.threads(name) for name in names)
        return next((threads for threads in found if threads is not None), otherwise)

    def mark_failed(self, name: str, sentence: str, details: str = "") -> None:
        """Note what a trial failed with."""
        self.folder(name).write(FAILURE, f"{sentence}\n\n{details}".rstrip() + "\n")

    def mark_stopped(self, name: str, record: Mapping[str, Any]) -> None:
        """Note that the scheduler has stopped a trial, and what it had reached."""
        self.folder(name).write(STOPPED, json.dumps(dict(record), indent=2) + "\n")

    def clear(self, name: str) -> None:
        """Remove an earlier failure, before a trial runs again."""
        self.folder(name).remove(FAILURE)

    def _record(self, name: str, file: str) -> dict[str, Any] | None:
        text = self.folder(name).read(file)
        try:
            found = None if text is None else json.loads(text)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None
