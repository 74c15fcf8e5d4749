"""The rows of the published table: what each measures, on which set, and what was published.

Source: README of the published code. Its classification numbers are by voting, the best of eight
seeds; the others are of one run each, few-shot of ten folds. The published zero-shot numbers
without a star are of one split, those with a star of training and test shapes together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from recon_ray.sweeps.fewshot.job import PUBLISHED

WeightsKey = Literal["init_from", "zeroshot_from", "svm_from"]

#: Runs of the published numbers.
SEEDS, FOLDS = 8, 10
#: Data set of the published pre-training.
PRETRAINED_ON = "shapenet55"
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
        """The published number for a table."""
        if self.published is None:
            return "-"
        spread = "" if self.deviation is None else f" ± {self.deviation}"
        return f"{self.published} %{spread}"


@dataclass(frozen=True)
class Row:
    """One option of the section ``rows``: the runs that some lines are made of.

    Attributes:
        name: Name of the option.
        job: Job of its runs.
        set: The set of the section ``sets``.
        source: Source with which the genuine set is prepared, and name of its card.
        lines: Its lines.
        weights: Option that names the weights.
        repeated: What there are several runs over.
    """

    name: str
    job: str
    set: str
    source: str
    lines: tuple[Line, ...]
    weights: WeightsKey = "init_from"
    repeated: Literal["seeds", "folds", ""] = ""

    @property
    def follows(self) -> str | None:
        """The row whose classifiers are evaluated."""
        return self.name.removesuffix(VOTE) if self.name.endswith(VOTE) else None


def _classification(name: str, source: str, title: str) -> Row:
    lines = (Line(f"{title}, plain", "accuracy", None),)
    return Row(name, "finetune", source, source, lines, repeated="seeds")


def _voting(name: str, source: str, title: str, published: float) -> Row:
    lines = (Line(f"{title}, voting", "accuracy_vote", published),)
    return Row(f"{name}{VOTE}", "evaluate", source, source, lines, repeated="seeds")


def _zeroshot(name: str, source: str, title: str, test: float, both: float | None = None) -> Row:
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
    return Row(f"zeroshot_{name}", "zeroshot", source, source, tuple(lines), "zeroshot_from")


_CLASSIFICATION = (
    ("obj_bg", "scanobjectnn_obj_bg", "ScanObjectNN OBJ_BG", 95.35),
    ("obj_only", "scanobjectnn_obj_only", "ScanObjectNN OBJ_ONLY", 93.80),
    ("pb_t50_rs", "scanobjectnn_pb_t50_rs", "ScanObjectNN PB_T50_RS", 91.26),
    ("modelnet40_1k", "modelnet40", "ModelNet40 1k", 94.5),
    ("modelnet40_8k", "modelnet40", "ModelNet40 8k", 94.7),
)
_FEWSHOT = tuple(
    Line(f"{way}-way {shot}-shot", "accuracy", mean, deviation, {"way": way, "shot": shot})
    for (way, shot), (mean, deviation) in PUBLISHED.items()
)

ROWS: tuple[Row, ...] = (
    *(
        row
        for name, source, title, published in _CLASSIFICATION
        for row in (
            _classification(name, source, title),
            _voting(name, source, title, published),
        )
    ),
    Row("fewshot", "finetune", "fewshot", "modelnet40", _FEWSHOT, repeated="folds"),
    _zeroshot("modelnet10", "modelnet10", "ModelNet10", 75.6, 81.6),
    _zeroshot("modelnet40", "modelnet40", "ModelNet40", 61.7, 66.8),
    _zeroshot("scanobjectnn", "scanobjectnn_obj_only", "ScanObjectNN", 43.7),
    Row(
        "svm",
        "linear_probe",
        "modelnet40",
        "modelnet40",
        (Line("linear SVM ModelNet40", "accuracy", 93.4),),
        "svm_from",
    ),
    Row(
        "partseg",
        "partseg",
        "shapenetpart",
        "shapenetpart",
        (Line("ShapeNetPart, instance mIoU", "instance_miou", 86.4),),
    ),
)
"""All rows in the order of the table; the runs by voting come after those that they evaluate."""
