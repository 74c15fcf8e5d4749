"""Parts of ``jobs/pretrain.py``: set, task, measurement, result."""

from __future__ import annotations

import json
import logging
import math
from functools import partial
from typing import Any

from recon_ray.cluster.training_job import TrainingJob
from recon_ray.config.yaml_tree import COMMAND_LINE
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.sources.cards import CARDS
from recon_ray.errors import CheckpointError, ConfigError, TeacherError
from recon_ray.runs.folder import START_FRESH_HINT
from recon_ray.storage import Place
from recon_ray.tasks.config_checks import (
    check_captions,
    check_evaluated_split,
    check_images,
    check_labeled,
    check_model,
    check_start,
    check_texts,
    find_set,
    texts_of,
)
from recon_ray.tasks.driver import Training, run_training, training_counts
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.pretrain.task import PretrainTask
from recon_ray.tasks.pretrain.validation import (
    best_kept,
    validated_set,
    validation_plan,
    validation_tables,
)
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import Run
from recon_ray.tasks.split_checks import HeldOut, compare_splits
from recon_ray.tasks.teacher_features import (
    SOURCE,
    cache_command,
    stored_captions,
    stored_teachers,
)
from recon_ray.teachers.bank import LARGEST_BANK
from recon_ray.train.settings import FitSettings

logger = logging.getLogger(__name__)

#: File of a run with the identities of the teachers it was started with.
TEACHERS = "teachers.json"
#: Options of the image teacher by which the published code read a picture.
PUBLISHED_READER = {"bgr": True, "statistics": "imagenet", "augment": "reference"}
SELECTION = "last step; probes and zero-shot accuracy on held-out shapes, nothing chosen on them"


def pretrain(job: Job[PretrainConfig]) -> JobResult:
    """Pre-train, evaluate before and after, draw, and write ``result.json``."""
    check_model(job.config)
    return run_training(
        job,
        Training(
            open_set=partial(open_set, creates=_creates(job)),
            plan=plan,
            label=lambda config: config.model.preset,
            begin=_begin,
            finish=lambda run, training, metrics: partial(_finish, run, training, metrics),
            dry_run={"eval": {"enabled": False}, "validation": {"every_epochs": None}},
        ),
    )


def _creates(job: Job[PretrainConfig]) -> bool:
    """Tell whether a missing set may be made: only where data.create was meant for that data.path.

    The quickstart's file creates its own set; a path that is mistyped on the command line must not
    become a folder of procedural shapes.
    """
    if job.config.data.create == "never":
        return False
    asked, named = (job.origins.get(key, "") for key in ("data.create", "data.path"))
    same_file = asked.rpartition(":")[0] == named.rpartition(":")[0]
    return asked == COMMAND_LINE or not named or same_file


def open_set(config: PretrainConfig, *, creates: bool = True) -> PreparedSet:
    """Open the prepared set, after preparing the synthetic one if configured and ``creates``.

    Raises:
        ConfigError: If there is no such folder, or it lacks a configured split or its pictures.
        DataError: If it is damaged.
    """
    path = config.data.path
    if creates and config.data.create == "synthetic":
        place = Place.of(path)
        if not (place / "_manifest.json").exists():
            _make_synthetic(config, place)
    prepared = find_set("data.path", path, config.data.version)
    check_evaluated_split(config, prepared)
    image = config.teacher.image
    if image.name not in (None, SOURCE) and image.mode == "online":
        check_images(prepared)
    if image.name not in (None, SOURCE) and config.flags.published_pictures:
        _warn_of_other_pictures(config, prepared)
    return prepared.checked(config.data.verify)


def _warn_of_other_pictures(config: PretrainConfig, prepared: PreparedSet) -> None:
    """Say where the pictures of a published set are not those that the published teacher saw."""
    card, views = prepared.manifest.get("card") or {}, prepared.manifest.get("views") or {}
    side = CARDS[card["name"]].picture_side if card.get("name") in CARDS else None
    if side is None:
        return
    image, found = config.teacher.image, []
    if (views.get("fit", "pad"), views.get("size")) != ("stretch", side):
        found.append(
            f"{prepared.path} was not prepared with protocol=reference, which keeps them without "
            f"transparency and stretched to {side} x {side}"
        )
    for name, published in PUBLISHED_READER.items():
        if (value := getattr(image, name)) != published:
            found.append(f"teacher.image.{name} is {str(value).lower()}")
    if found:
        logger.warning("the pictures are not what the published code saw: %s", "; ".join(found))


def _make_synthetic(config: PretrainConfig, path: Place) -> None:
    from recon_ray.data.sources.base import Listing
    from recon_ray.tasks.prepare.job import make_source, prepare_set  # readers of meshes

    stored = config.prepare.num_points or Listing.num_points
    if config.data.num_points > stored:
        raise ConfigError(
            f"data.num_points={config.data.num_points}: data.create would make a set with "
            f"prepare.num_points={stored}; lower the one or raise the other"
        )
    logger.info("no prepared set in %s: preparing the synthetic one", path)
    prepare_set(make_source("synthetic", None, config.prepare), path, config.prepare)


def make_task(config: PretrainConfig, prepared: PreparedSet) -> PretrainTask:
    """Make the task with the texts of the set.

    Raises:
        ConfigError: If the set lacks the configured classes or texts.
        TeacherError: If a teacher cannot be made.
    """
    captions = stored_captions(config, prepared)
    texts = []
    if config.data.text == "category":
        texts = texts_of(prepared, "category")
    if captions is None and config.teacher.text.name not in (None, SOURCE):
        if config.data.text == "caption":
            texts = texts_of(prepared, "caption")
            splits = [split.name for split in prepared.join(config.data.train_splits).members]
            way = "set data.text=category or teacher.text.name=null"
            check_captions(prepared, splits, "data.text=caption", or_else=way)
        check_texts(prepared, texts)
        if len(texts) > LARGEST_BANK:
            logger.warning(
                "data.text=caption: every worker encodes %d captions and keeps all their features "
                "on its device; make them once, to be read with the shapes: %s",
                len(texts), cache_command(config),
            )  # fmt: skip
    check_labeled(config, prepared)
    stored = stored_teachers(config, prepared, texts, captions=captions)
    for one in stored.features:
        logger.info("%s: %d a shape, %d wide, of %s", one.column, *one.shape, one.identity["name"])
    return PretrainTask(
        config,
        texts=texts,
        num_classes=len(prepared.classes),
        stored=stored,
        validation=validation_plan(config, validated_set(config, prepared)),
        up_axis=prepared.manifest.get("source_up_axis", "y"),
    )


def plan(run: Run, config: PretrainConfig, prepared: PreparedSet) -> TrainingJob:
    """Make the task, refuse to continue the run with another model or other teachers."""
    task = make_task(config, prepared)
    check_start(run, lambda: task.stored_model(task.build()))
    _check_teachers(run, task)
    return training_job(run, config, prepared, task)


def training_job(
    run: Run, config: PretrainConfig, prepared: PreparedSet, task: PretrainTask
) -> TrainingJob:
    """Return task, data and settings of the training."""
    validation = None if task.validation is None else task.validation.plan
    return TrainingJob(
        make_task=partial(
            PretrainTask,
            config,
            texts=task.texts,
            num_classes=task.num_classes,
            stored=task.stored,
            validation=validation,
            up_axis=task.up_axis,
        ),
        settings=FitSettings(
            config,
            validate_every_epochs=config.validation.every_epochs,
            select=None if validation is None else validation.metric,
        ),
        options=task.batch_options(),
        prepared=prepared,
        folder=run.folder,
        evaluation_splits=(config.eval.split,) if config.eval.enabled else (),
        features=task.stored.features,
        other_tables=validation_tables(validation, validated_set(config, prepared)),
        split_counts=_compare_splits(config, prepared, validated_set(config, prepared)),
        smallest_batch=2 if config.loss.self_contrast else 1,
    )


def _compare_splits(
    config: PretrainConfig, prepared: PreparedSet, validated: PreparedSet | None
) -> dict[str, Any]:
    """Compare the measured splits with what is trained on; zero-shot needs no classes of it."""
    options, held_out, counts = config.validation, {}, {}
    one = HeldOut("validation.test_split", options.test_split, options.limit)
    if validated is prepared:
        held_out[one.split] = one
    elif validated is not None and options.kind == "svm":
        fitted = [options.train_split]
        counts["validation"] = compare_splits(validated, fitted, [one], limit=options.limit)
    if config.eval.enabled and len(prepared.classes) > 1:
        split = config.eval.split
        held_out[split] = HeldOut("eval.split", split, config.eval.limit)
    if held_out:
        train, limit = config.data.train_splits, config.data.limit
        one_by_one = list(held_out.values())
        counts |= compare_splits(prepared, train, one_by_one, limit=limit, needs_classes=False)
    return counts


def _check_teachers(run: Run, task: PretrainTask) -> None:
    """Refuse to continue a run with other teachers than it was started with."""
    text = None if run.resume == "never" else run.folder.read(TEACHERS)
    if text is None:
        return
    now = json.loads(json.dumps(task.teachers))
    try:
        before = json.loads(text)
        wrong = [kind for kind in ("image", "text") if before[kind] != now[kind]]
    except (ValueError, TypeError, KeyError) as error:
        place = f"{run.folder.uri}/{TEACHERS}"
        raise CheckpointError(f"{place}: it is damaged; {START_FRESH_HINT}") from error
    if wrong:
        raise TeacherError(
            f"teacher.{wrong[0]}.name: this run was started with {before[wrong[0]]}, the weights "
            f"found now are {now[wrong[0]]}; restore those weights, or choose another run.name"
        )


def _begin(run: Run, training: TrainingJob) -> None:
    run.begin()
    task = training.make_task()
    assert isinstance(task, PretrainTask)
    run.folder.write(TEACHERS, json.dumps(task.teachers, indent=2) + "\n")


def _finish(run: Run, training: TrainingJob, metrics: dict[str, float]) -> JobResult:
    from recon_ray.tasks.run_figures import draw_pretraining  # matplotlib, after the workers ended

    config, prepared = training.config, training.prepared
    assert isinstance(config, PretrainConfig)
    counts = training_counts(training, metrics)
    return run.finish(
        metrics,
        table=summary(metrics),
        selection=SELECTION + best_kept(config, metrics),
        counts=counts,
        draw=partial(draw_pretraining, run.folder, prepared, config),
        prepared=prepared,
        teachers=json.loads(run.folder.read(TEACHERS) or "{}"),
    )


def summary(metrics: dict[str, float]) -> str:
    """Short table of a pre-training's result."""
    rows = [
        ("loss (first, last record)", "loss_first", "loss_last", "{:.4f}"),
        ("zero-shot accuracy", "zeroshot_before", "zeroshot_accuracy", "{:.1%}"),
        ("linear probe, few labels", "probe_before", "probe_after", "{:.1%}"),
        ("linear SVM, all labels", "probe_full_before", "probe_full_after", "{:.1%}"),
    ]
    lines = [f"{'':28}{'before':>10}{'after':>10}"]
    for title, before, after, form in rows:
        if after in metrics:
            first = form.format(metrics[before]) if before in metrics else "-"
            lines.append(f"{title:28}{first:>10}{form.format(metrics[after]):>10}")
    if "chance" in metrics:
        lines.append(f"{'chance':28}{metrics['chance']:>20.1%}")
    if not math.isnan(metrics.get("samples_per_second", math.nan)):
        lines.append(f"{'samples per second':28}{metrics['samples_per_second']:>20.0f}")
    return "\n".join(lines)
