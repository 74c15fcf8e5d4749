"""Workloads of the step benchmark: published sizes, random clouds, random teachers."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import timm
import torch
from PIL import Image
from torch import nn

from recon_ray.data.format.schema import tensor_column
from recon_ray.data.format.stored_features import StoredFeatures
from recon_ray.data.loading.batches import BatchOptions, IndexedTable
from recon_ray.models.presets import MODELS, preset_sizes
from recon_ray.models.recon import Embedder
from recon_ray.tasks.classify.config import FinetuneConfig
from recon_ray.tasks.classify.task import ClassificationTask, classifier_of
from recon_ray.tasks.classify.voting import VotingEvaluation
from recon_ray.tasks.feature_extraction import PointChoice, extract_features
from recon_ray.tasks.partseg.config import PartsegConfig
from recon_ray.tasks.partseg.iou import PartTable
from recon_ray.tasks.partseg.task import PartSegmentationTask, Scoring
from recon_ray.tasks.point_pipeline import Augmentation, CloudPipeline
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.pretrain.task import PretrainTask
from recon_ray.tasks.teacher_features import StoredTeachers
from recon_ray.train.runtime import EvaluationRuntime
from recon_ray.train.task import Task

#: Classes of ShapeNet-55, and the image teacher's width (ViT-B).
CLASSES, IMAGE_DIM = 55, 768
#: Published settings of the classifiers: points a stored cloud, points seen, patches, classes.
CLASSIFIERS = {"finetune_scan": (2048, 2048, 128, 15), "finetune_modelnet8k": (8192, 8192, 512, 40)}
ONLINE_TEACHER = "vit_base_patch16_224"
#: Passes over random subsets whose logits a voting round averages (published).
REPEATS = 10
#: Rounds of voting beyond the first, and batches of encoding, that are timed on a GPU and on CPUs.
VOTES, SVM_BATCHES = {True: 4, False: 1}, {True: (4, 84), False: (1, 3)}
#: Batches of clouds in a round.
VOTED_BATCHES = 6
#: Distinct pictures of an online teacher, and their side in pixels.
PICTURES, PICTURE_SIZE = 256, 224


@dataclass(frozen=True)
class TrainingWorkload:
    """A training step at published sizes.

    Attributes:
        task: Task.
        table: Random training rows.
        options: Columns and options of a batch.
        batch_size: Published batch.
        clip_norm: Largest L2 norm of the gradient.
    """

    task: Task
    table: IndexedTable
    options: BatchOptions
    batch_size: int
    clip_norm: float | None = None


def training_workload(name: str, preset: str, samples: int, folder: Path) -> TrainingWorkload:
    """Make a workload of the step benchmark; weights of a teacher are put into ``folder``."""
    if name == "partseg":
        return _partseg(preset, samples)
    if name in CLASSIFIERS:
        return _classifier(name, preset, samples)
    teacher: dict[str, Any] = {"text": {"name": "descriptor:512"}, "image": {"name": None}}
    stored = StoredTeachers()
    if name == "pretrain_online":
        weights = folder / f"{ONLINE_TEACHER}.pt"
        torch.save(timm.create_model(ONLINE_TEACHER).state_dict(), weights)
        teacher["image"] = {"name": f"timm:{ONLINE_TEACHER}:{weights}"}
    else:
        image = StoredFeatures("image_features", (), (1, IMAGE_DIM), "copy", {"name": "random"})
        stored = StoredTeachers(image=image)
    config = PretrainConfig.model_validate(
        {
            "model": {"preset": preset},
            "teacher": teacher,
            "data": {"num_points": 1024},
            "loss": {"self_contrast": name == "pretrain_contrast"},
        }
    )
    classes = [f"class {number}" for number in range(CLASSES)]
    task = PretrainTask(config, texts=classes, num_classes=CLASSES, stored=stored)
    columns = {"image_features": (1, IMAGE_DIM)} if stored.image is not None else {}
    pictures = 0 if stored.image is not None else PICTURES
    table = random_table(samples, 1024, CLASSES, features=columns, pictures=pictures)
    return TrainingWorkload(task, table, task.batch_options(), 128)


@dataclass(frozen=True)
class EvaluationWorkload:
    """An evaluation at published sizes.

    Attributes:
        model: Model.
        table: Random clouds.
        run: Evaluation of an amount; the difference of two amounts is timed.
        amounts: Those two numbers.
        clouds: Clouds of one unit of the amount.
        num_points: Points of a cloud in the model's input.
    """

    model: nn.Module
    table: IndexedTable
    run: Callable[[nn.Module, EvaluationRuntime, int], object]
    amounts: tuple[int, int]
    clouds: int
    num_points: int


def evaluation_workload(
    name: str, preset: str, batch_size: int, *, on_gpu: bool
) -> EvaluationWorkload:
    """Make ``svm``, ``vote_scan`` or ``vote_modelnet8k``, large enough to time a GPU or CPUs."""
    if name == "svm":
        return _svm(preset, batch_size, SVM_BATCHES[on_gpu])
    stored, points, groups, classes = CLASSIFIERS[name.replace("vote", "finetune")]
    config = FinetuneConfig.model_validate({"model": {"preset": preset, "num_groups": groups}})
    kind, architecture = classifier_of(config, None, classes)
    model = MODELS[kind](**architecture).eval()
    clouds = VOTED_BATCHES * batch_size // REPEATS

    def vote(model: nn.Module, runtime: EvaluationRuntime, votes: int) -> object:
        evaluation = VotingEvaluation(
            weights="",
            sizes={},
            split="test",
            pipeline=CloudPipeline(points, "whole", transform="scale"),
            classes=tuple(map(str, range(classes))),
            votes=votes,
            repeats=REPEATS,
            batch_size=batch_size,
            seed=0,
        )
        return evaluation.measure(model, runtime, source="random")

    table = random_table(clouds, stored, classes)
    return EvaluationWorkload(model, table, vote, (1, 1 + VOTES[on_gpu]), clouds, points)


def _svm(preset: str, batch_size: int, amounts: tuple[int, int]) -> EvaluationWorkload:
    model = Embedder(**preset_sizes(preset, "embedder")).eval()
    choice = PointChoice(1024, how="resample")

    def extract(model: nn.Module, runtime: EvaluationRuntime, batches: int) -> object:
        return extract_features(
            lambda points: {"svm": model(points)},
            runtime,
            "test",
            choice,
            batch_size=batch_size,
            limit=batches * batch_size,
        )

    table = random_table(amounts[1] * batch_size, 8192, 40)
    return EvaluationWorkload(model, table, extract, amounts, batch_size, 1024)


def _classifier(name: str, preset: str, samples: int) -> TrainingWorkload:
    stored, points, groups, classes = CLASSIFIERS[name]
    config = FinetuneConfig.model_validate(
        {"model": {"preset": preset, "num_groups": groups}, "data": {"num_points": points}}
    )
    kind, architecture = classifier_of(config, None, classes)
    augment: Augmentation = "rotate" if name == "finetune_scan" else "scale_translate"
    pipeline = CloudPipeline(points, "whole", augment)
    names = [f"class{number}" for number in range(classes)]
    task = ClassificationTask(config, kind, architecture, pipeline, names)
    table = random_table(samples, stored, classes)
    return TrainingWorkload(task, table, task.batch_options(), 32, config.train.clip_norm)


def _partseg(preset: str, samples: int) -> TrainingWorkload:
    table = PartTable(
        tuple(f"category{number}" for number in range(16)),
        tuple((3 * number, 3 * number + 1, 3 * number + 2) for number in range(16)),
    )
    config = PartsegConfig.model_validate({"model": {"preset": preset}})
    scoring = Scoring(table, 2048, 64, "own", has_valid_points=False)
    sizes = {
        **preset_sizes(preset, "partseg"),
        "num_parts": table.num_parts,
        "num_categories": 16,
        "num_groups": 128,
    }
    task = PartSegmentationTask(config, sizes, scoring)
    rows = random_table(samples, 2500, 16, parts=table.num_parts)
    return TrainingWorkload(task, rows, scoring.options, 32)


def random_table(
    samples: int,
    num_points: int,
    classes: int,
    *,
    features: dict[str, tuple[int, int]] | None = None,
    parts: int = 0,
    pictures: int = 0,
) -> IndexedTable:
    """Make labeled clouds near the unit sphere in memory, with the columns of a prepared set.

    Args:
        samples: Clouds.
        num_points: Points a cloud.
        classes: Labels.
        features: Columns of stored features, and the shape of one sample's.
        parts: Number of part labels of the points; 0 for none.
        pictures: Number of distinct pictures, one for each sample in turn; 0 for none.
    """
    random = np.random.default_rng(0)
    points = random.standard_normal((samples, num_points, 3), dtype=np.float32)
    points /= np.linalg.norm(points, axis=2, keepdims=True)
    ids = pa.array(np.arange(samples))
    columns = {
        "sample_id": ids,
        "points": tensor_column(points),
        "label": pa.array(random.integers(classes, size=samples, dtype=np.int32)),
    }
    if parts:
        numbers = random.integers(parts, size=(samples, num_points)).astype(np.uint8)
        columns["part_labels"] = tensor_column(numbers)
    groups = []
    for name, shape in (features or {}).items():
        values = random.standard_normal((samples, *shape), dtype=np.float32).astype(np.float16)
        groups.append([pa.table({"sample_id": ids, name: tensor_column(values)})])
    if not pictures:
        return IndexedTable([pa.table(columns)], None, groups)
    files = [_picture(random) for _ in range(pictures)]
    lists = pa.array([[files[i % pictures]] for i in range(samples)], pa.list_(pa.binary()))
    return IndexedTable([pa.table(columns)], [pa.table({"sample_id": ids, "views": lists})], groups)


def _picture(random: np.random.Generator) -> bytes:
    """Draw a PNG of PICTURE_SIZE pixels square: a smooth blob on white, like a rendering."""
    coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    coarse[[0, -1]] = coarse[:, [0, -1]] = 255
    size = (PICTURE_SIZE, PICTURE_SIZE)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()
