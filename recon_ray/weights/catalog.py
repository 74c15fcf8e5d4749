"""Published weights by name, and the search for local copies.

The publisher offers them for download without hashes; a copy is found by its name in the folder of
the environment variable ``RECON_WEIGHTS``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from recon_ray.errors import NoWeightsError
from recon_ray.weights.weight_files import SUFFIXES

FOLDER_VARIABLE = "RECON_WEIGHTS"


@dataclass(frozen=True)
class PublishedWeights:
    """A published file.

    Attributes:
        kind: Kind of its model.
        purpose: Intended use.
        result: Published accuracy or mIoU in percent, or None.
        num_groups: Patches of a cloud.
        num_points: Points of a cloud.
    """

    kind: str
    purpose: str
    result: str | None
    num_groups: int = 64
    num_points: int = 1024

    @property
    def sizes(self) -> dict[str, int]:
        """Constructor arguments that cannot be read off the shapes of the weights."""
        return {"num_heads": 6, "num_groups": self.num_groups, "group_size": 32}


def _finetuned(data: str, result: str, num_groups: int, num_points: int) -> PublishedWeights:
    purpose = f"classification of {data}, fine-tuned throughout"
    return PublishedWeights("classifier", purpose, result, num_groups, num_points)


CATALOG: dict[str, PublishedWeights] = {
    "recon_pretrain": PublishedWeights(
        "recon",
        "start of classification and few-shot runs: pre-trained on ShapeNet, ImageNet-21k teacher",
        None,
    ),
    "recon_zeroshot": PublishedWeights(
        "recon",
        "zero-shot classification: pre-trained on ShapeNet with the CLIP image teacher",
        "ModelNet10 75.6 (train and test 81.6), ModelNet40 61.7 (66.8), ScanObjectNN 43.7",
    ),
    "recon_svm": PublishedWeights(
        "recon",
        "linear SVM on ModelNet40; how its pre-training differs is not published",
        "93.4",
    ),
    "recon_scanobjectnn_pb_t50_rs": _finetuned("ScanObjectNN PB_T50_RS", "91.26", 128, 2048),
    "recon_scanobjectnn_obj_bg": _finetuned("ScanObjectNN OBJ_BG", "95.35", 128, 2048),
    "recon_scanobjectnn_obj_only": _finetuned("ScanObjectNN OBJ_ONLY", "93.80", 128, 2048),
    "recon_modelnet40_1k": _finetuned("ModelNet40 with 1,024 points", "94.5", 64, 1024),
    "recon_modelnet40_8k": _finetuned("ModelNet40 with 8,192 points", "94.7", 512, 8192),
    "recon_shapenetpart": PublishedWeights(
        "partseg", "part segmentation of ShapeNetPart", "86.4 instance mIoU", 128, 2048
    ),
}
"""Published files by our names; a local copy has this name with any suffix of
:data:`~recon_ray.weights.weight_files.SUFFIXES`. Accuracies are by voting, best of eight seeds."""


def find_published(name: str, folder: str | Path | None = None) -> Path:
    """Find the local copy of published weights.

    Args:
        name: Key of :data:`CATALOG`.
        folder: Folder of the copies; ``RECON_WEIGHTS`` by default.

    Raises:
        NoWeightsError: If the name is unknown, no folder is given, or the file is missing.
    """
    if name not in CATALOG:
        raise NoWeightsError(
            f"{name}: there is no such file, run folder, or name of published weights; the names "
            f"are {', '.join(CATALOG)}"
        )
    place = folder or os.environ.get(FOLDER_VARIABLE)
    files = f"{name}{{{','.join(SUFFIXES)}}}"
    if not place:
        raise NoWeightsError(
            f"{name}: these weights are published ({CATALOG[name].purpose}); put the file as "
            f"{files} into a folder and name that in {FOLDER_VARIABLE}, or give the file's path"
        )
    for suffix in SUFFIXES:
        path = Path(place) / f"{name}{suffix}"
        if path.is_file():
            return path
    raise NoWeightsError(f"{name}: {place} holds no {files}; put the published file there")
