"""Runs of the published table: what each needs, what is missing, and what is scaled down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recon_ray.config.fields import option, with_option
from recon_ray.config.help import as_mapping
from recon_ray.config.loader import override
from recon_ray.config.sections.common import JobConfig
from recon_ray.config.sections.training import TrainingConfig
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.published import unlike_published
from recon_ray.errors import CheckpointError, ConfigError, DataError, TeacherError
from recon_ray.reproduce.config import PublishedSetSection, ReproduceConfig, RowsSection
from recon_ray.reproduce.paper import FOLDS, PRESET, PRETRAINING, ROWS, SEEDS, Row
from recon_ray.storage import Place, join
from recon_ray.sweeps.disk import DiskEstimate
from recon_ray.sweeps.fewshot.config import FewshotConfig
from recon_ray.sweeps.fewshot.job import fold_config, fold_trial
from recon_ray.sweeps.sweep_plan import InnerJob
from recon_ray.sweeps.tables import text_table
from recon_ray.sweeps.trial_folders import TrialFolders
from recon_ray.sweeps.trial_placement import Trial
from recon_ray.tasks.classify import finetune_job as finetune
from recon_ray.tasks.classify.config import FinetuneConfig
from recon_ray.tasks.classify.episodes import SharedClouds, read_clouds
from recon_ray.tasks.config_checks import find_set
from recon_ray.tasks.partseg import job as partseg
from recon_ray.tasks.partseg.config import PartsegConfig
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.registry import Job, find_job
from recon_ray.tasks.start_weights import resolve
from recon_ray.weights.find import load_start

#: Name of the pre-training among the trials.
PRETRAIN = "pretrain"
#: Sizes of the pre-training's model that every model that starts from it has too.
SIZES = ("preset", "embed_dim", "depth", "num_heads")
#: Unit of the options that set how much is computed.
UNITS = {
    "train.epochs": "epochs",
    "data.num_points": "points",
    "eval.votes": "rounds of voting",
    "eval.repeats": "subsets a round",
}


@dataclass(frozen=True)
class RowPlan:
    """Runs of one row.

    Attributes:
        row: The row.
        config: Configuration that its runs have in common.
        trials: Its runs.
        scaled: What is less than published.
        path: Folder of the prepared set; None where none is named.
        stand_in: Whether the configuration declares the set a stand-in; None leaves it to its card.
        episodes: The few-shot episodes.
        missing: Set or weights without which it is skipped, in a sentence.
        broken: Damage for which it cannot be run, in a sentence.
        same_as: Row whose runs these are, as options, set and seeds are equal.
    """

    row: Row
    config: JobConfig
    trials: tuple[Trial, ...]
    scaled: tuple[str, ...]
    path: str | None
    stand_in: bool | None = None
    episodes: tuple[tuple[int, int, int], ...] = ()
    missing: str = ""
    broken: str = ""
    same_as: str = ""

    @property
    def is_run(self) -> bool:
        """Return whether its runs can be started."""
        return not self.missing and not self.broken


@dataclass(frozen=True)
class TablePlan:
    """All runs of the table.

    Attributes:
        config: The configuration with those of the jobs resolved; running it again is the same.
        pretrain: Configuration of the pre-training; None where weights are named.
        rows: The rows in the order of the table.
    """

    config: ReproduceConfig
    pretrain: PretrainConfig | None
    rows: tuple[RowPlan, ...]

    @property
    def scaled(self) -> list[str]:
        """Return what is scaled down in the pre-training of this table."""
        return [] if self.pretrain is None else scaled_down(self.pretrain, PRETRAINING)

    def starts_itself(self, plan: RowPlan) -> bool:
        """Return whether a row starts from the pre-training of this table."""
        own = self.pretrain
        start = None if own is None else join(own.run.storage, str(own.run.name))
        return start is not None and option(plan.config, "init_from") == start


def plan_table(config: ReproduceConfig, origins: Mapping[str, str], storage: str) -> TablePlan:
    """Resolve the configuration of every row and list its runs, whose folders lie in a storage.

    Raises:
        ConfigError: One line each problem.
    """
    resolved: dict[str, Any] = {}
    pretrain: PretrainConfig | None = None
    if config.init_from is None:
        inner = InnerJob.read(PretrainConfig, config.pretrain or {}, PRETRAIN, origins)
        full = _built(inner, PRETRAIN, {})
        pretrain = _own_pretraining(config, full, storage)
        resolved[PRETRAIN] = as_mapping(full)
    chosen = config.reproduce.rows or RowsSection.model_fields
    jobs = {
        row.option: InnerJob.read(row.schema, options, f"rows.{row.option}", origins)
        for row in ROWS
        if row.option in chosen and (options := getattr(config.rows, row.option))
    }
    plans = [
        _row_plan(config, row, jobs[row.option], storage)
        for row in ROWS
        if row.option in jobs and row.follows in (None, *jobs)
    ]
    plans = _run_once(plans, storage)
    written = {name: _written(job) for name, job in jobs.items()}
    resolved["rows"] = config.rows.model_copy(update=written)
    return TablePlan(config.model_copy(update=resolved), pretrain, tuple(plans))


def _run_once(plans: Sequence[RowPlan], storage: str) -> list[RowPlan]:
    """Return the rows with the runs of an earlier row where these would compute the same again."""
    first: dict[tuple[str, str], tuple[Trial, str]] = {}
    places: dict[str, str] = {}
    found = []
    for plan in plans:
        trials, same_as = [], ""
        for trial in plan.trials:
            start = places.get(str(trial.values.get("init_from")))
            own = replace(trial, values={**trial.values, **({"init_from": start} if start else {})})
            key = plan.row.job, override(plan.config, own.values).model_dump_json()
            kept, name = first.setdefault(key, (own, plan.row.name))
            same_as = name if name != plan.row.name else same_as
            places[join(storage, trial.name)] = join(storage, kept.name)
            trials.append(kept)
        found.append(replace(plan, trials=tuple(trials), same_as=same_as))
    return found


def _own_pretraining(config: ReproduceConfig, full: JobConfig, storage: str) -> PretrainConfig:
    """Return the pre-training as one of the runs."""
    fixed = {"run.name": PRETRAIN, "run.storage": storage, "run.seed": config.run.seed}
    if config.cluster.workers == 0:
        fixed["cluster.workers"] = 0
    if config.cluster.address is not None:
        fixed["cluster.address"] = config.cluster.address
    if option(full, "train.keep_optimizer") is None:
        fixed["train.keep_optimizer"] = False
    own = override(full, {**_runtime(config), **fixed})
    assert isinstance(own, PretrainConfig)
    return own


def _written(job: InnerJob) -> dict[str, Any]:
    """Return the options of a row with its files resolved, without what the table fills in."""
    options = as_mapping(job.build({"init_from": PRETRAIN}))
    return {name: value for name, value in options.items() if name not in ("init_from", "run")}


def _built(job: InnerJob, key: str, values: Mapping[str, Any]) -> JobConfig:
    """Make the configuration of a job; messages name the option that holds it.

    Raises:
        ConfigError: One line each problem.
    """
    try:
        return job.build(values)
    except ConfigError as error:
        lines = [f"{key}.{line}" for line in str(error).splitlines()]
        raise ConfigError("\n".join(lines)) from None


def _runtime(config: ReproduceConfig) -> dict[str, Any]:
    return {f"runtime.{name}": value for name, value in config.runtime.model_dump().items()}


def _fixed(config: ReproduceConfig, row: Row, storage: str) -> dict[str, Any]:
    """Return what the table decides of a row's configuration."""
    fixed: dict[str, Any] = {
        "init_from": getattr(config, row.weights) or config.init_from or join(storage, PRETRAIN),
        "run.seed": config.run.seed,
        "data.verify": "open",  # hashes are compared once, by the driver
        **_runtime(config),
    }
    path = _set_of(config, row).path
    if path is not None:
        fixed["data.path"] = path
    if row.job == "zeroshot":
        fixed["zeroshot.splits"] = ["train", "test"]  # the job reports each of them too
    if row.repeated == "folds":
        fixed["data.episodes"] = config.sets.episodes
    return fixed


def _set_of(config: ReproduceConfig, row: Row) -> PublishedSetSection:
    section: PublishedSetSection = getattr(config.sets, row.set)
    return config.sets.modelnet40 if row.set == "fewshot" and section.path is None else section


def _row_plan(config: ReproduceConfig, row: Row, job: InnerJob, storage: str) -> RowPlan:
    section, key = _set_of(config, row), f"rows.{row.option}"
    full = _built(job, key, _fixed(config, row, storage))
    if option(full, "cluster.workers") not in (0, 1):
        raise ConfigError(
            f"{key}.cluster.workers: every run of the table is one process; leave it out"
        )
    trials, episodes = _trials(config, row, full, storage)
    base = fold_config(full) if isinstance(full, FewshotConfig) else full
    scaled = scaled_down(base, row.length)
    if row.repeated:
        own, published = _repeats(config)[row.repeated], {"seeds": SEEDS, "folds": FOLDS}
        if own != published[row.repeated]:
            scaled.insert(0, f"{own} of {published[row.repeated]} {row.repeated}")
    return RowPlan(row, base, trials, tuple(scaled), section.path, section.stand_in, episodes)


def _repeats(config: ReproduceConfig) -> dict[str, int]:
    options = config.reproduce
    return {"seeds": options.seeds or SEEDS, "folds": options.folds or FOLDS}


def scaled_down(config: JobConfig, published: Mapping[str, int]) -> list[str]:
    """Return what a run has less of than the published one, by option: ``3 of 300 epochs``."""
    notes = [
        f"{own:,} of {published[key]:,} {unit}"
        for key, unit in UNITS.items()
        if key in published and (own := option(config, key) or published[key]) < published[key]
    ]
    for key, text in (("data.limit", "at most {} shapes"), ("train.steps", "at most {} steps")):
        most = option(config, key, None)
        notes += [text.format(most)] if most is not None else []
    preset = option(config, "model.preset", PRESET)
    return notes + ([f"{preset} model"] if preset not in (None, PRESET) else [])


def _trials(
    config: ReproduceConfig, row: Row, base: JobConfig, storage: str
) -> tuple[tuple[Trial, ...], tuple[tuple[int, int, int], ...]]:
    if isinstance(base, FewshotConfig):
        folds = tuple(range(_repeats(config)["folds"]))
        episodes = base.fewshot.model_copy(update={"folds": folds}).episodes
        common = fold_config(base)
        drawn = [fold_trial(common, episode) for episode in episodes]
        named = [replace(trial, name=f"{row.name}_{trial.name}") for trial in drawn]
        return tuple(named), tuple(episodes)
    if row.repeated != "seeds":
        return (Trial(row.name, {}),), ()
    trials = []
    first, count = config.run.seed, _repeats(config)["seeds"]
    for number in range(first, first + count):
        values: dict[str, Any] = {"run.seed": number}
        if row.follows is not None:
            values["init_from"] = join(storage, f"{row.follows}_seed-{number}")
        trials.append(Trial(f"{row.name}_seed-{number}", values))
    return tuple(trials), ()


# --- What is missing ------------------------------------------------------------------------------


def check_rows(table: TablePlan, *, has_weights: bool) -> TablePlan:
    """Return the plan with the reason in every row that cannot be run.

    Rows by voting need the ones that they follow. Without weights the pre-training is still to run.
    """
    plans: dict[str, RowPlan] = {}
    for plan in table.rows:
        checked = _checked(plan, has_weights=has_weights or not table.starts_itself(plan))
        if plan.row.follows is not None and checked.is_run:
            before = plans[plan.row.follows]
            checked = replace(checked, missing=before.missing, broken=before.broken)
        plans[plan.row.name] = checked
    return replace(table, rows=tuple(plans.values()))


def _checked(plan: RowPlan, *, has_weights: bool) -> RowPlan:
    try:
        _check(plan, has_weights=has_weights)
    except (ConfigError, CheckpointError, TeacherError) as error:
        return replace(plan, missing=str(error).splitlines()[0])
    except DataError as error:
        return replace(plan, broken=str(error).splitlines()[0])
    return plan


def _check(plan: RowPlan, *, has_weights: bool) -> None:
    """Let the job of the row refuse what it would refuse.

    Raises:
        ConfigError: If there is no such set, or it does not serve the row.
        CheckpointError: If there are no such weights, or they do not serve it.
        DataError: If the set is damaged.
    """
    key = f"sets.{plan.row.set}.path"
    if plan.path is None:
        raise ConfigError(f"{key} is null: no prepared set is named")
    if not Place.of(plan.path).is_dir():
        way = f"see jobs/prepare.py source={plan.row.source}"
        raise ConfigError(f"{key}={plan.path}: no such folder; {way}")
    config, job = plan.config, plan.row.job
    find_set("data.path", plan.path)
    if plan.row.follows is not None:
        return
    if plan.episodes:
        read_episodes_of(plan)
        if has_weights:
            load_start(option(config, "init_from"))
    elif isinstance(config, FinetuneConfig):
        config = resolve(config if has_weights else with_option(config, "init_from", None))
        prepared = finetune.open_set(config)
        if has_weights:
            finetune.make_task(config, prepared)
    elif isinstance(config, PartsegConfig):
        config = resolve(config if has_weights else with_option(config, "init_from", None))
        prepared = partseg.open_set(config)
        partseg.part_table(config, prepared)
        if has_weights:
            partseg.make_task(config, prepared)
    elif has_weights:
        find_job(job).load_main()(Job(job, config, dry_run=True))


def read_episodes_of(plan: RowPlan) -> SharedClouds:
    """Read the clouds of all few-shot episodes once.

    Raises:
        ReconError: If one is missing.
    """
    assert isinstance(plan.config, FinetuneConfig)
    return read_clouds(plan.config, PreparedSet.open(str(plan.path)), list(plan.episodes))


def verify_sets(plans: Sequence[RowPlan]) -> list[RowPlan]:
    """Compare the hashes of every set once; the rows of a damaged one cannot be run."""
    faults: dict[str, str] = {}
    for path in dict.fromkeys(str(plan.path) for plan in plans if plan.is_run):
        try:
            PreparedSet.open(path).verify_hashes()
        except DataError as error:
            faults[path] = str(error)
    return [
        replace(plan, broken=faults.get(str(plan.path), "")) if plan.is_run else plan
        for plan in plans
    ]


# --- What is genuine ------------------------------------------------------------------------------


def set_notes(plan: RowPlan) -> list[str]:
    """Return what is not the published set about a row's: nothing, if it is all of it."""
    if plan.path is None or not plan.is_run:
        return []
    prepared = PreparedSet.open(plan.path)
    note = unlike_published(prepared, (plan.row.source, plan.row.set))
    if plan.stand_in:
        note = unlike_published(prepared, ())
    elif plan.stand_in is False and note.startswith("stand-in:"):
        note = note.replace("stand-in:", "declared to be the published set:")
    return [note] if note else []


def compares(notes: Sequence[str]) -> bool:
    """Return whether published numbers are of the set that the notes are about, all of it."""
    return not any(note.startswith(("stand-in:", "part of the set:")) for note in notes)


# --- The plan as text -----------------------------------------------------------------------------

_HEAD = ("step", "done", "a run", "published", "")


def plan_text(
    table: TablePlan,
    folders: TrialFolders,
    disk: DiskEstimate,
    *,
    fresh: bool,
    has_weights: bool,
    fault: str = "",
) -> str:
    """Return the steps in the order in which they run: length, published numbers, what is missing.

    A fresh table sets aside what is finished; the fault is that of the pre-training.
    """
    own = table.pretrain
    steps: list[tuple[str, JobConfig, str, int, str, str, str]] = []
    if own is not None:
        why = f"cannot run: {fault}" if fault else ""
        done = int(has_weights)
        notes = ", ".join(table.scaled)
        steps.append((PRETRAIN, own, f"{done}/1", 1 - done, "-", notes, why))
    for plan in table.rows:
        names = [trial.name for trial in plan.trials]
        done = 0 if fresh else sum(folders.status(name) == "done" for name in names)
        is_theirs = compares(set_notes(plan))
        published = ", ".join(line.shown() for line in plan.row.lines) if is_theirs else "-"
        after = [f"after {plan.row.follows}"] if plan.row.follows else []
        same = [f"the runs of {plan.same_as}"] if plan.same_as else []
        notes = ", ".join([*after, *same, *plan.scaled])
        why = f"cannot run: {plan.broken}" if plan.broken else ""
        why = f"skipped: {plan.missing}" if plan.missing else why
        counted, left = f"{done}/{len(names)}", 0 if plan.same_as else len(names) - done
        steps.append((plan.row.name, plan.config, counted, left, published, notes, why))
    cells, faults, runs, epochs = [], [], 0, 0
    for name, config, counted, left, published, notes, why in steps:
        if why:
            cells.append([name, "-", "-", published, why.partition(":")[0]])
            faults.append(f"  {name} {why}")
            continue
        length, votes = option(config, "train.epochs", 0), option(config, "eval.votes", 0)
        each = f"{length:,} epochs" if length else f"{votes:,} rounds" if votes else "-"
        cells.append([name, counted, each, published, notes])
        runs, epochs = runs + left, epochs + left * length
    total = f"{runs} runs are left, {epochs:,} epochs of training in all"
    return "\n".join([text_table(_HEAD, cells, left=(0, 3, 4)), *faults, str(disk), total])


def disk_of(
    table: TablePlan, folders: TrialFolders, *, fresh: bool, has_weights: bool
) -> DiskEstimate:
    """Return what the trainings that are left will keep."""
    own, configs = table.pretrain, list[JobConfig]()
    if own is not None and not has_weights:
        configs.append(own)
    for plan in table.rows:
        is_training = plan.is_run and not plan.same_as and isinstance(plan.config, TrainingConfig)
        for trial in plan.trials if is_training else ():
            values = dict(trial.values)
            if own is not None and not has_weights and table.starts_itself(plan):
                values["init_from"] = None
                values |= {f"model.{name}": getattr(own.model, name) for name in SIZES}
            if fresh or not folders.has_ended(trial.name):
                configs.append(override(plan.config, values))
    return DiskEstimate(folders.storage, configs)
