"""What the rows of the published table are measured on: what is missing, and what is genuine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recon_ray.config.sections.common import JobConfig
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import CheckpointError, ConfigError, DataError, TeacherError
from recon_ray.reproduce.paper import PRETRAINED_ON
from recon_ray.reproduce.plan import RowPlan
from recon_ray.runs.folder import RunFolder
from recon_ray.tasks.classify import finetune_job as finetune
from recon_ray.tasks.classify.classifier_checks import load_start
from recon_ray.tasks.classify.config import FinetuneConfig
from recon_ray.tasks.classify.episodes import SharedClouds, read_clouds
from recon_ray.tasks.config_checks import find_set
from recon_ray.tasks.linear_probe import job as linear_probe
from recon_ray.tasks.linear_probe.config import LinearProbeConfig
from recon_ray.tasks.partseg import job as partseg
from recon_ray.tasks.partseg.config import PartsegConfig
from recon_ray.tasks.registry import Job
from recon_ray.tasks.zeroshot import job as zeroshot
from recon_ray.tasks.zeroshot.config import ZeroshotConfig
from recon_ray.weights.catalog import CATALOG

#: Teachers without weights, which stand in for real ones.
STAND_IN_TEACHER = "descriptor"


def check_row(plan: RowPlan, *, has_weights: bool) -> RowPlan:
    """See whether a row can be run; give it with the reason if it cannot.

    Args:
        plan: The row.
        has_weights: Whether its weights are there by now, rather than still to be trained.
    """
    if plan.path is None or not Path(plan.path).is_dir():
        return replace(plan, missing=_no_set(plan))
    try:
        _check(plan, has_weights=has_weights)
    except (ConfigError, CheckpointError, TeacherError) as error:
        return replace(plan, missing=str(error).splitlines()[0])
    except DataError as error:
        return replace(plan, broken=str(error).splitlines()[0])
    return plan


def _no_set(plan: RowPlan) -> str:
    key = f"sets.{plan.row.set}.path"
    if plan.path is None:
        return f"{key} is null: no prepared set is named"
    return f"{key}={plan.path}: no such folder; see jobs/prepare.py source={plan.row.source}"


def _check(plan: RowPlan, *, has_weights: bool) -> None:
    """Let the job of the row refuse what it would refuse.

    Raises:
        ConfigError: If the set does not serve the row.
        CheckpointError: If there are no such weights, or they do not serve it.
        DataError: If the set is damaged.
    """
    prepared = find_set("data.path", Path(str(plan.path)))
    if plan.episodes:
        assert isinstance(plan.config, FinetuneConfig)
        read_clouds(plan.config, prepared, list(plan.episodes))
        if has_weights:
            load_start(plan.config.init_from)
    elif plan.row.follows is None:
        checks: dict[type[JobConfig], Callable[[Any, bool], None]] = {
            FinetuneConfig: _check_finetuning,
            ZeroshotConfig: _check_zeroshot,
            LinearProbeConfig: _check_probe,
            PartsegConfig: _check_parts,
        }
        checks[type(plan.config)](plan.config, has_weights)


def _check_finetuning(config: FinetuneConfig, has_weights: bool) -> None:
    prepared = finetune.open_set(config)
    if has_weights:
        finetune.make_task(config, prepared)


def _check_zeroshot(config: ZeroshotConfig, has_weights: bool) -> None:
    if has_weights:
        zeroshot.zeroshot(Job("zeroshot", config, dry_run=True))


def _check_probe(config: LinearProbeConfig, has_weights: bool) -> None:
    if has_weights:
        linear_probe.linear_probe(Job("linear_probe", config, dry_run=True))


def _check_parts(config: PartsegConfig, has_weights: bool) -> None:
    prepared = partseg.open_set(config)
    partseg.part_table(config, prepared)
    if has_weights:
        partseg.make_task(config, prepared)


def read_episodes_of(plan: RowPlan) -> SharedClouds:
    """Read the clouds of all few-shot episodes once.

    Raises:
        ReconError: If one is missing.
    """
    assert isinstance(plan.config, FinetuneConfig)
    return read_clouds(plan.config, PreparedSet.open(str(plan.path)), list(plan.episodes))


# --- What is genuine ------------------------------------------------------------------------------


def set_notes(plan: RowPlan) -> list[str]:
    """Say what is not the published set about a row's: nothing, if it is all of it."""
    if plan.path is None or plan.missing or plan.broken:
        return []
    manifest = PreparedSet.open(plan.path).manifest
    rows = {name: int(split["rows"]) for name, split in manifest["splits"].items()}
    counted = ", ".join(f"{name} {count:,}" for name, count in rows.items())
    card, source = manifest.get("card") or {}, str(manifest["source"])
    is_known = card.get("name") in (plan.row.source, plan.row.set)
    if plan.stand_in or (plan.stand_in is None and not is_known):
        return [f"stand-in: {card.get('title') or source} ({counted})"]
    published = card.get("counts", {}) if is_known else {}
    partial = [
        f"{name} {rows.get(name, 0):,} of {count:,}"
        for name, count in published.items()
        if rows.get(name, 0) != count
    ]
    return [f"part of the set: {', '.join(partial)}"] if partial else []


def weights_notes(spec: str) -> list[str]:
    """Say how weights were pre-trained otherwise than the published ones.

    Args:
        spec: ``init_from`` of a row.
    """
    if spec in CATALOG:
        return []
    try:
        result = json.loads(RunFolder(spec).read("result.json") or "{}")
        names = [teacher["name"] for teacher in result["teachers"].values() if teacher]
        return pretraining_notes(str(result["data"]), names)
    except (OSError, ValueError, KeyError, TypeError, DataError, CheckpointError):
        return [f"unknown pre-training: {spec} does not tell"]


def pretraining_notes(
    path: str, teachers: Sequence[str | None], scaled: Sequence[str] = ()
) -> list[str]:
    """Say what is not as published about a pre-training.

    Args:
        path: Its set.
        teachers: Names of its teachers.
        scaled: What was scaled down.
    """
    parts = list(scaled)
    if any(str(name).startswith(STAND_IN_TEACHER) for name in teachers):
        parts.insert(0, "descriptor teachers")
    manifest = PreparedSet.open(path).manifest
    card = manifest.get("card") or {}
    if card.get("name") != PRETRAINED_ON:
        parts.insert(0, str(card.get("title") or manifest["source"]))
    return [f"other pre-training: {', '.join(parts)}"] if parts else []


def verify_sets(plans: Sequence[RowPlan]) -> list[RowPlan]:
    """Compare the hashes of every set once; the rows of a damaged one cannot be run."""
    faults: dict[str, str] = {}
    for path in dict.fromkeys(str(plan.path) for plan in plans if plan.is_run):
        try:
            PreparedSet.open(path).verify_hashes()
        except DataError as error:
            faults[path] = str(error)
    return [
        replace(plan, broken=faults[str(plan.path)])
        if plan.is_run and str(plan.path) in faults
        else plan
        for plan in plans
    ]
