"""Trials of a sweep under Ray Tune.

Tune decides when a trial starts and whether the scheduler stops it; what became of it is read from
its folder (:mod:`recon_ray.sweeps.trial_folders`), so nothing is restored from Tune's own state.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.search import Searcher

from recon_ray.cluster.workarounds.environment import TUNE, set_environment
from recon_ray.machine import working_directory
from recon_ray.runs.folder import RunFolder
from recon_ray.storage import is_uri
from recon_ray.sweeps.early_stopping import EarlyStopping, read_curves
from recon_ray.sweeps.trial_folders import TrialFolders
from recon_ray.sweeps.trial_placement import Trial, TrialJob, TrialPlan
from recon_ray.sweeps.trial_progress import TrialProgress

#: Tune's own folder in the run's; it goes again.
TUNE_FOLDER = ".ray-tune"
#: Log of a trial, in its folder.
LOG = "trial.log"


def run_on_ray(
    job: TrialJob,
    plan: TrialPlan,
    progress: TrialProgress,
    *,
    trials: Sequence[Trial] = (),
    source: Searcher | None = None,
) -> None:
    """Run listed trials, or those that a source proposes, on the cluster that was joined."""
    set_environment(TUNE)
    function = tune.with_parameters(  # each of them lies in the object store once
        _trainable,
        job=replace(job, shared=None),
        plan=plan,
        shared=job.shared,
        folder=working_directory(),
    )
    resources = {"cpu": plan.cpus} | ({"gpu": plan.gpus} if plan.gpus else {})
    # Tune's own state, which nobody reads, lies beside the trials where that is a folder.
    is_temporary = is_uri(job.folders.uri)
    storage = tempfile.mkdtemp() if is_temporary else str(Path(job.folders.uri).absolute())
    # It looks for the records that its own loggers would have written.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    scheduler = _scheduler(job)
    listed = [{"name": trial.name, "values": dict(trial.values)} for trial in trials]
    try:
        tune.Tuner(
            tune.with_resources(function, resources),
            param_space={} if source is not None else {"trial": tune.grid_search(listed)},
            tune_config=tune.TuneConfig(
                num_samples=-1 if source is not None else 1,
                max_concurrent_trials=plan.at_once,
                search_alg=source,
                scheduler=scheduler,
                # An inner run leaves actors behind that only the end of its process removes.
                reuse_actors=job.inner is None,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=TUNE_FOLDER,
                storage_path=storage,
                callbacks=[_Watcher(job.folders, progress, scheduler)],
                verbose=0,
            ),
        ).fit()
    finally:
        shutil.rmtree(storage if is_temporary else f"{storage}/{TUNE_FOLDER}", ignore_errors=True)
    progress.close()


def _scheduler(job: TrialJob) -> EarlyStopping | None:
    options = job.stopping
    if options is None:
        return None
    curves = read_curves(job.folders, options.watch)
    return EarlyStopping(options, grace=job.grace, epochs=job.epochs, curves=curves)


def _name(trial: Any) -> str:  # noqa: ANN401 - Tune's trial
    return str(trial.config["trial"]["name"])


def _trainable(
    config: dict[str, Any],
    job: TrialJob,
    plan: TrialPlan,
    shared: Any,  # noqa: ANN401 - anything that pickles
    folder: str,
) -> None:
    """Run a trial in its process, which may have run other trials before."""
    if Path(folder).is_dir():
        os.chdir(folder)
    trial = Trial(config["trial"]["name"], config["trial"]["values"])
    if 0 < plan.gpus < 1 and torch.cuda.is_available():
        # Ray does not limit memory: a trial that takes more than its part fails alone.
        torch.cuda.set_per_process_memory_fraction(plan.gpus)
    with _logging_to(job.folders.folder(trial.name)):
        metrics, failure = job.run_safely(trial, shared, plan.threads, tune.report)
    tune.report({**metrics, "has_ended": True, "failure": failure})


@contextmanager
def _logging_to(folder: RunFolder) -> Iterator[None]:
    """Write the log of a trial to its folder."""
    folder.local.mkdir(parents=True, exist_ok=True)
    folder.fetch(LOG)  # of an earlier attempt
    handler = logging.FileHandler(folder.local / LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    own = logging.getLogger("recon_ray")
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    try:
        yield
    finally:
        own.removeHandler(handler)
        handler.close()
        folder.publish()


class _Watcher(tune.Callback):
    """Callback that counts the trials and notes what those cannot note in their own folders."""

    def __init__(
        self, folders: TrialFolders, progress: TrialProgress, scheduler: EarlyStopping | None
    ) -> None:
        self._folders = folders
        self._progress = progress
        self._reasons = {} if scheduler is None else scheduler.reasons

    def on_trial_start(self, trial: Any, **_: Any) -> None:  # noqa: ANN401
        self._progress.started(_name(trial))

    def on_trial_result(self, trial: Any, result: dict[str, Any], **_: Any) -> None:  # noqa: ANN401
        if "has_ended" not in result:
            self._progress.progressed(_name(trial), _reported(result))

    def on_trial_complete(self, trial: Any, **_: Any) -> None:  # noqa: ANN401
        name, result = _name(trial), trial.last_result or {}
        if "has_ended" not in result:
            reached = _reported(result)
            reason = self._reasons.get(name, "")
            self._folders.mark_stopped(name, {**reached, "reason": reason})
            self._progress.stopped(name, f"epoch {reached.get('epoch', 0):g}: {reason}")
        elif result["failure"]:
            self._progress.broke(name, result["failure"])
        else:
            numbers = {k: v for k, v in result.items() if isinstance(v, int | float)}
            self._progress.done(name, numbers)

    def on_trial_error(self, trial: Any, **_: Any) -> None:  # noqa: ANN401
        sentence = "its process died without an error message (killed, out of memory, node lost)"
        if self._folders.status(_name(trial)) == "waiting":
            self._folders.mark_failed(_name(trial), sentence)
        self._progress.broke(_name(trial), sentence)

    def on_step_end(self, **_: Any) -> None:  # noqa: ANN401
        self._progress.show()


def _reported(result: Mapping[str, Any]) -> dict[str, float]:
    """Return what the trial itself has reported, without what Tune adds."""
    own = [key for key in result if key == "epoch" or "/" in key]
    return {key: result[key] for key in own if not key.startswith("config/")}
