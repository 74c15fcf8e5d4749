"""Parts of ``jobs/evaluate.py``: set, task, measurement, result."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import ConfigError
from recon_ray.tasks.classify.config import EvaluateConfig
from recon_ray.tasks.classify.confusion import class_lines, confusion_records, overall_accuracy
from recon_ray.tasks.classify.voting import VotingEvaluation, vote_summary
from recon_ray.tasks.config_checks import (
    check_labels,
    check_names,
    check_points,
    describe_set,
    find_set,
)
from recon_ray.tasks.driver import run_evaluation
from recon_ray.tasks.input_hashes import inputs_of
from recon_ray.tasks.point_pipeline import CloudPipeline, pipeline_of
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import Run
from recon_ray.tasks.start_weights import describe_weights, open_start
from recon_ray.weights.load import build
from recon_ray.weights.weight_files import LoadedWeights

logger = logging.getLogger(__name__)


def evaluate_classifier(job: Job[EvaluateConfig]) -> JobResult:
    """Measure a classifier on a split and write ``result.json``."""
    config = job.config
    if config.init_from is None:
        raise ConfigError(
            "init_from: no classifier is named; give a run folder of jobs/finetune.py, a file of "
            "weights, or the name of published weights"
        )
    config, place, weights = open_start(config)
    prepared = find_set("data.path", config.data.path)
    make, pipeline = _plan(config, prepared, place, weights)
    split = config.data.split
    logger.info("%s, normalize=%s", describe_set(prepared, split), pipeline.normalize)
    clouds = prepared.splits[split].rows
    fits = [
        "the classifier was built and fits the set, nothing is kept",
        f"{'classifier':28}{weights.source}",
        f"{'clouds':28}{clouds:>20,}",
        f"{'clouds encoded, plain':28}{clouds:>20,}",
        f"{'clouds encoded, voting':28}{clouds * config.eval.votes * config.eval.repeats:>20,}",
    ]
    return run_evaluation(
        replace(job, config=config),
        make,
        prepared,
        (split,),
        label=split,
        resume=config.resume,
        fits="\n".join(fits),
        verify=config.data.verify,
        finish=lambda run, found: _finish(run, config, prepared, weights, found),
    )


def _plan(
    config: EvaluateConfig, prepared: PreparedSet, place: str, weights: LoadedWeights
) -> tuple[partial[VotingEvaluation], CloudPipeline]:
    """Refuse what does not fit, before anything starts."""
    check_names(weights, prepared)
    build(weights)
    pipeline = _pipeline(config, prepared, weights)
    outputs = int(weights.architecture["num_classes"])
    check_labels(prepared, "data.split", config.data.split, outputs)
    make = partial(
        VotingEvaluation,
        place,
        weights.sizes,
        config.data.split,
        pipeline,
        outputs,
        config.eval.votes,
        config.eval.repeats,
        config.eval.batch_size,
        config.run.seed,
        config.eval.save_every_seconds,
        inputs_of(config),
    )
    return make, pipeline


def _pipeline(
    config: EvaluateConfig, prepared: PreparedSet, weights: LoadedWeights
) -> CloudPipeline:
    """Return the pipeline of the clouds: that of the fine-tuning, where it is recorded."""
    data, flags = config.data, config.flags
    recorded = weights.extra.get("normalize", "auto")
    pipeline = pipeline_of(
        prepared.manifest.get("card"),
        num_points=data.num_points,
        skips_origin=flags.skips_origin,
        normalize=recorded if data.normalize == "auto" else data.normalize,
        transform=config.eval.transform,
    )
    check_points(prepared, pipeline.num_points, published=flags.published_num_points)
    return pipeline


def _finish(
    run: Run,
    config: EvaluateConfig,
    prepared: PreparedSet,
    weights: LoadedWeights,
    found: dict[str, Any],
) -> JobResult:
    from recon_ray.tasks.run_figures import draw_classification  # matplotlib, after the workers

    matrix, rounds = np.array(found["confusion"]), found["rounds"]
    metrics = {"accuracy": overall_accuracy(matrix), **vote_summary(rounds)}
    counts = {**found["counts"], "votes": len(rounds), "repeats": config.eval.repeats}
    return run.finish(
        metrics,
        table=_summary(metrics, matrix, prepared.classes),
        selection=_selection(config),
        counts={**counts, "workers": config.cluster.max_workers},
        draw=partial(draw_classification, run.folder, matrix, prepared.classes),
        prepared=prepared,
        card=(prepared.manifest.get("card") or {}).get("name"),
        votes=rounds,
        weights=describe_weights(weights),
        **confusion_records(matrix, prepared.classes),
    )


def _selection(config: EvaluateConfig) -> str:
    plain = f"every shape of {config.data.split!r} once"
    votes = config.eval.votes
    if votes == 0:
        return plain
    if config.flags.best_vote:
        return (
            f"accuracy_vote_max: best of {votes} rounds of voting (published habit); plain {plain}"
        )
    return f"accuracy_vote_mean: mean of {votes} rounds of voting; plain {plain}"


def _summary(metrics: dict[str, float], matrix: np.ndarray, classes: list[str]) -> str:
    lines = [f"{'':28}{'accuracy':>12}{'shapes':>8}", *class_lines(matrix, classes)]
    if "accuracy_vote_mean" in metrics:
        lines += [
            f"{'voting, mean of rounds':28}{metrics['accuracy_vote_mean']:>12.2%}",
            f"{'voting, deviation':28}{metrics['accuracy_vote_std']:>12.2%}",
            f"{'voting, best round':28}{metrics['accuracy_vote_max']:>12.2%}",
        ]
    return "\n".join(lines)
