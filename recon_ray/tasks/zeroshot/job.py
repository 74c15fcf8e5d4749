"""Main function of ``jobs/zeroshot.py``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.tasks.classify.confusion import (
    class_accuracy,
    class_lines,
    confusion_records,
    overall_accuracy,
)
from recon_ray.tasks.config_checks import (
    check_classes,
    check_labels,
    check_points,
    class_texts,
    find_set,
)
from recon_ray.tasks.driver import run_evaluation
from recon_ray.tasks.feature_extraction import open_embedder
from recon_ray.tasks.point_pipeline import evaluated_clouds
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import Run
from recon_ray.tasks.start_weights import describe_weights
from recon_ray.tasks.teacher_features import (
    SOURCE,
    check_texts_known,
    check_width,
    make_text_teacher,
    stored_bank,
)
from recon_ray.tasks.zeroshot.config import ZeroshotConfig
from recon_ray.tasks.zeroshot.evaluation import Candidates, ZeroshotEvaluation
from recon_ray.teachers.cache import StoredBank
from recon_ray.weights.weight_files import LoadedWeights

logger = logging.getLogger(__name__)


def zeroshot(job: Job[ZeroshotConfig]) -> JobResult:
    """Classify the splits and write ``result.json``."""
    config, place, weights = _weights(job.config)
    prepared = find_set("data.path", config.data.path)
    candidates = _candidates(config, prepared)
    bank, identity = _text_features(config, prepared, weights, candidates)
    flags = config.flags
    check_points(prepared, config.data.num_points, published=flags.published_num_points)
    clouds = evaluated_clouds(config, prepared, weights)
    shapes = sum(prepared.splits[split].rows for split in {*config.zeroshot.splits})
    fits = [
        "weights, set and text teacher fit, nothing was classified",
        f"{'shapes':28}{shapes:>20,}",
        f"{'classes to choose from':28}{len(candidates.names):>20,}",
        f"{'text teacher':28}{identity['name']:>20}",
    ]
    return run_evaluation(
        replace(job, config=config),
        partial(
            ZeroshotEvaluation,
            weights=place,
            sizes=weights.sizes,
            batch_size=config.zeroshot.batch_size,
            candidates=candidates,
            options=config.zeroshot,
            choice=clouds.zeroshot(resamples=flags.resamples_zeroshot, seed=config.run.seed),
            teacher=config.teacher.text,
            bank=bank,
            drops_last=flags.drops_last_batch,
            limit=config.data.limit,
        ),
        prepared,
        list(dict.fromkeys(config.zeroshot.splits)),
        fits="\n".join(fits),
        verify=config.data.verify,
        finish=lambda run, found: _finish(
            run, config, prepared, candidates, found, identity, describe_weights(weights)
        ),
    )


def _weights(config: ZeroshotConfig) -> tuple[ZeroshotConfig, str, LoadedWeights]:
    """Read the weights and refuse those without the projections that are needed."""
    config, place, weights, _ = open_embedder(config)
    widths = {name: weights.architecture.get(f"{name}_dim") for name in ("image", "text")}
    kind = config.zeroshot.kind
    needed = ("image", "text") if kind == "full" else (kind,)
    missing = [name for name in needed if widths[name] is None]
    if missing:
        have = [name for name, width in widths.items() if width is not None]
        way = f"set zeroshot.kind={have[0]}, or give" if have else "give"
        raise CheckpointError(
            f"zeroshot.kind={kind}: {weights.source} has no {' and no '.join(missing)} projection "
            f"(it has {have[0] if have else 'none'}); {way} weights of a pre-training with that "
            "teacher"
        )
    if kind == "full" and widths["image"] != widths["text"]:
        raise CheckpointError(
            f"zeroshot.kind=full: the projections of {weights.source} are {widths['image']} "
            f"(image) and {widths['text']} (text) wide, of teachers that do not share a space; set "
            "zeroshot.kind=text"
        )
    return config, place, weights


def _candidates(config: ZeroshotConfig, prepared: PreparedSet) -> Candidates:
    """Return the classes to choose from, by the options and the set's card."""
    classes, given, path = prepared.classes, config.zeroshot.classes, prepared.path
    check_classes(prepared)
    for split in config.zeroshot.splits:
        check_labels(prepared, "zeroshot.splits", split, len(classes))
    texts = class_texts(prepared, published=config.flags.published_texts)
    if given is None or isinstance(given, dict):
        unknown = [name for name in given or () if name not in texts]
        if unknown:
            near = _near(unknown[0], classes)
            raise ConfigError(
                f"zeroshot.classes.{unknown[0]}: {path} has no such class{near}; name classes of "
                "the set, or give a list of names to choose from"
            )
        texts |= given or {}
        return Candidates(tuple(classes), tuple(texts.values()), tuple(range(len(classes))))
    occurring = _occurring(prepared, config.zeroshot.splits)
    missing = [classes[label] for label in occurring if classes[label] not in given]
    if missing:
        near = _near(missing[0], given)
        raise ConfigError(
            f"zeroshot.classes: {len(missing)} classes of the shapes in {path} are not in the list "
            f"({missing[0]!r}{near}); add them, or give a mapping of classes to texts"
        )
    numbers = {name: number for number, name in enumerate(given)}
    return Candidates(
        tuple(given),
        tuple(texts.get(name, name) for name in given),
        tuple(numbers.get(name, -1) for name in classes),
    )


def _near(name: str, others: Sequence[str]) -> str:
    close = get_close_matches(name, others, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _occurring(prepared: PreparedSet, splits: Sequence[str]) -> list[int]:
    labels = [prepared.read(split, columns=["label"])["label"].to_numpy() for split in splits]
    return [int(label) for label in np.unique(np.concatenate(labels)) if label >= 0]


def _text_features(
    config: ZeroshotConfig,
    prepared: PreparedSet,
    weights: LoadedWeights,
    candidates: Candidates,
) -> tuple[StoredBank | None, dict[str, str]]:
    """Find stored features of the texts, else check the teacher; also return its identity."""
    options, kind = config.teacher.text, config.zeroshot.kind
    if options.name in (None, SOURCE):
        raise ConfigError(
            f"teacher.text.name={options.name or 'null'}: zero-shot needs a text teacher for the "
            "classes; name the one of the pre-training, or table:<file> with its features"
        )
    bank = stored_bank(options, prepared, candidates.texts)
    teacher = bank or make_text_teacher(options)
    side = "text" if kind == "text" else "image"
    check_width("text", str(options.name), teacher.dim, weights, side)
    check_texts_known(teacher, candidates.texts)
    return bank, dict(teacher.identity)


def _finish(
    run: Run,
    config: ZeroshotConfig,
    prepared: PreparedSet,
    candidates: Candidates,
    found: dict[str, Any],
    identity: dict[str, str],
    weights: dict[str, Any],
) -> JobResult:
    matrices = {split: np.array(rows) for split, rows in found["splits"].items()}
    whole = np.sum(list(matrices.values()), axis=0)
    metrics = {
        "zeroshot_accuracy": overall_accuracy(whole),
        "zeroshot_class_accuracy": class_accuracy(whole),
        "chance": 1 / len(candidates.names),
    }
    if len(matrices) > 1:
        for split, matrix in matrices.items():
            metrics[f"zeroshot_accuracy_{split}"] = overall_accuracy(matrix)
    from recon_ray.tasks.run_figures import draw_classification  # matplotlib, after the workers

    options = config.zeroshot
    lines = [f"{name:28}{value:>12.1%}" for name, value in metrics.items()]
    return run.finish(
        metrics,
        table="\n".join([*lines, "", *class_lines(whole, candidates.names)]),
        selection=f"all shapes of {' and '.join(matrices)}, nothing chosen on them",
        counts={
            **found["counts"],
            "shapes": {split: int(matrix.sum()) for split, matrix in matrices.items()},
            "classes": len(candidates.names),
            "workers": config.cluster.max_workers,
        },
        draw=partial(draw_classification, run.folder, whole, candidates.names),
        prepared=prepared,
        zeroshot={"kind": options.kind, "ratio": options.ratio, "splits": list(matrices)},
        texts=dict(zip(candidates.names, candidates.texts, strict=True)),
        teacher=identity,
        weights=weights,
        **confusion_records(whole, candidates.names),
    )
