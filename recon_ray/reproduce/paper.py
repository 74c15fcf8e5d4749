"""Rows of the published table: measure, set and published numbers of each.

Source: README of the published code. Its classification numbers are by voting, the best of eight
seeds; the others are of one run each, few-shot of ten folds. The published zero-shot numbers
without a star are of one split, those with a star of training and test shapes together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from recon_ray.config.sections.common import JobConfig
from recon_ray.sweeps.fewshot.job import PUBLISHED
from recon_ray.tasks.registry import find_job

WeightsKey = Literal["init_from", "zeroshot_from", "svm_from"]

#: Seeds and folds of the published numbers.
SEEDS, FOLDS = 8, 10
#: Data set and length of the published pre-training, and of its model.
PRETRAINED_ON, PRESET = "shapenet55", "base"
PRETRAINING = {"train.epochs": 300, "data.num_points": 1024}
VOTE = "_vote"


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        title: What is measured.
        metric: Number of ``result.json`` of the runs.
        published: Mean or best in percent; None where nothing was published.
        deviation: Its deviation, whose kind was not stated.
        only: Values that runs must have to belong to the line.
        selection: How the number was chosen, where the runs' own words are about another one.
    """

    title: str
    metric: str
    published: float | None
    deviation: float | None = None
    only: Mapping[str, Any] = field(default_factory=dict)
    selection: str = ""

    def shown(self) -> str:
        """Return the published number for a table."""
        if self.published is None:
            return "-"
        spread = "" if self.deviation is None else f" ± {self.deviation}"
        return f"{self.published} %{spread}"


@dataclass(frozen=True)
class Row:
    """Runs of one job on one set, which fill one line of the table or several.

    Attributes:
        name: Name of the row.
        job: Job of its runs.
        set: The set of the section ``sets``.
        source: Source with which the genuine set is prepared, and name of its card.
        lines: Its lines.
        length: Published values of the options that set how much is computed.
        weights: Option that names the weights.
        repeated: What differs between its runs.
    """

    name: str
    job: str
    set: str
    source: str
    lines: tuple[Line, ...]
    length: Mapping[str, int]
    weights: WeightsKey = "init_from"
    repeated: Literal["seeds", "folds", ""] = ""

    @property
    def follows(self) -> str | None:
        """Row whose classifiers are evaluated."""
        return self.name.removesuffix(VOTE) if self.name.endswith(VOTE) else None

    @property
    def option(self) -> str:
        """Option of the section ``rows`` that holds its configuration."""
        return self.name if self.follows is None else "voting"

    @property
    def schema(self) -> type[JobConfig]:
        """Root model of that option."""
        return find_job("fewshot" if self.repeated == "folds" else self.job).load_config()


def _length(points: int, epochs: int | None = None) -> dict[str, int]:
    return {"data.num_points": points} | ({} if epochs is None else {"train.epochs": epochs})


def _classified(
    name: str, source: str, title: str, points: int, published: float
) -> tuple[Row, Row]:
    """Return the fine-tunings on a set, and voting with each of them."""
    plain = (Line(f"{title}, plain", "accuracy", None),)
    voting = (Line(f"{title}, voting", "accuracy_vote", published),)
    votes = {"eval.votes": 299, "eval.repeats": 10}
    return (
        Row(name, "finetune", source, source, plain, _length(points, 300), repeated="seeds"),
        Row(f"{name}{VOTE}", "evaluate", source, source, voting, votes, repeated="seeds"),
    )


def _zeroshot(
    name: str, source: str, title: str, points: int, test: float, both: float | None = None
) -> Row:
    lines = [
        Line(
            f"zero-shot {title}",
            "zeroshot_accuracy_test",
            test,
            selection="all shapes of test, nothing chosen on them",
        )
    ]
    if both is not None:
        lines.append(Line(f"zero-shot {title}*", "zeroshot_accuracy", both))
    names = (f"zeroshot_{name}", "zeroshot", source, source)
    return Row(*names, tuple(lines), _length(points), "zeroshot_from")


_FEWSHOT = tuple(
    Line(f"{way}-way {shot}-shot", "accuracy", mean, deviation, {"way": way, "shot": shot})
    for (way, shot), (mean, deviation) in PUBLISHED.items()
)

ROWS: tuple[Row, ...] = (
    *_classified("obj_bg", "scanobjectnn_obj_bg", "ScanObjectNN OBJ_BG", 2048, 95.35),
    *_classified("obj_only", "scanobjectnn_obj_only", "ScanObjectNN OBJ_ONLY", 2048, 93.80),
    *_classified("pb_t50_rs", "scanobjectnn_pb_t50_rs", "ScanObjectNN PB_T50_RS", 2048, 91.26),
    *_classified("modelnet40_1k", "modelnet40", "ModelNet40 1k", 1024, 94.5),
    *_classified("modelnet40_8k", "modelnet40", "ModelNet40 8k", 8192, 94.7),
    Row(
        "fewshot", "finetune", "fewshot", "modelnet40", _FEWSHOT, _length(1024, 150),
        repeated="folds",
    ),
    _zeroshot("modelnet10", "modelnet10", "ModelNet10", 1024, 75.6, 81.6),
    _zeroshot("modelnet40", "modelnet40", "ModelNet40", 1024, 61.7, 66.8),
    _zeroshot("scanobjectnn", "scanobjectnn_obj_only", "ScanObjectNN", 2048, 43.7),
    Row(
        "svm", "linear_probe", "modelnet40", "modelnet40",
        (Line("linear SVM ModelNet40", "accuracy", 93.4),), _length(1024), "svm_from",
    ),
    Row(
        "partseg", "partseg", "shapenetpart", "shapenetpart",
        (Line("ShapeNetPart, instance mIoU", "instance_miou", 86.4),), _length(2048, 300),
    ),
)  # fmt: skip
"""All rows in the order of the table; the runs by voting come after those that they evaluate."""
