"""The published weights by name: what each is for, and where a local copy is looked for.

The publisher offers them for download without hashes; a copy in the folder that the environment
variable ``RECON_WEIGHTS`` names is found by the names here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from recon_ray.errors import CheckpointError
from recon_ray.weights.weight_files import SUFFIXES

FOLDER_VARIABLE = "RECON_WEIGHTS"


@dataclass(frozen=True)
class PublishedWeights:
    """One published file.

    Attributes:
        name: Our name; a local copy is called so, with any suffix of
            :data:`recon_ray.weights.weight_files.SUFFIXES`.
        kind: Kind of model that it holds.
        purpose: What it is for.
        result: What is published for it (accuracy or mIoU in percent), or None.
        sizes: Constructor arguments that the shapes of the weights do not tell.
        sha256: Hash of the published file, or None where none is known.
    """

    name: str
    kind: str
    purpose: str
    result: str | None
    sizes: dict[str, int]
    sha256: str | None = None


def _finetuned(name: str, data: str, result: str, num_groups: int) -> PublishedWeights:
    purpose = f"classification of {data}, fine-tuned throughout"
    return PublishedWeights(name, "classifier", purpose, result, {"num_groups": num_groups})


_ROWS = (
    PublishedWeights(
        "recon_pretrain",
        "recon",
        "start of classification and few-shot runs: pre-trained on ShapeNet, ImageNet-21k teacher",
        None,
        {"num_groups": 64},
    ),
    PublishedWeights(
        "recon_zeroshot",
        "recon",
        "zero-shot classification: pre-trained on ShapeNet with the CLIP image teacher",
        "ModelNet10 75.6 (train and test 81.6), ModelNet40 61.7 (66.8), ScanObjectNN 43.7",
        {"num_groups": 64},
    ),
    PublishedWeights(
        "recon_svm",
        "recon",
        "linear SVM on ModelNet40; how its pre-training differs is not published",
        "93.4",
        {"num_groups": 64},
    ),
    _finetuned("recon_scanobjectnn_pb_t50_rs", "ScanObjectNN PB_T50_RS", "91.26", 128),
    _finetuned("recon_scanobjectnn_obj_bg", "ScanObjectNN OBJ_BG", "95.35", 128),
    _finetuned("recon_scanobjectnn_obj_only", "ScanObjectNN OBJ_ONLY", "93.80", 128),
    _finetuned("recon_modelnet40_1k", "ModelNet40 with 1,024 points", "94.5", 64),
    _finetuned("recon_modelnet40_8k", "ModelNet40 with 8,192 points", "94.7", 512),
    PublishedWeights(
        "recon_shapenetpart",
        "partseg",
        "part segmentation of ShapeNetPart",
        "86.4 instance mIoU",
        {"num_groups": 128},
    ),
)
CATALOG: dict[str, PublishedWeights] = {row.name: row for row in _ROWS}
"""The published files by our names. Accuracies are by voting, the best of eight seeds."""


def find_published(name: str, folder: str | Path | None = None) -> Path:
    """Find the local copy of published weights.

    Args:
        name: Key of :data:`CATALOG`.
        folder: Where the copies lie; by default what ``RECON_WEIGHTS`` says.

    Raises:
        CheckpointError: If the name is unknown, no folder is given, or it has no such file.
    """
    if name not in CATALOG:
        raise CheckpointError(
            f"{name}: there is no such file, run folder, or name of published weights; the names "
            f"are {', '.join(CATALOG)}"
        )
    place = folder or os.environ.get(FOLDER_VARIABLE)
    files = f"{name}{{{','.join(SUFFIXES)}}}"
    if not place:
        raise CheckpointError(
            f"{name}: these weights are published ({CATALOG[name].purpose}); put the file as "
            f"{files} into a folder and name that in {FOLDER_VARIABLE}, or give the file's path"
        )
    for suffix in SUFFIXES:
        path = Path(place) / f"{name}{suffix}"
        if path.is_file():
            return path
    raise CheckpointError(f"{name}: {place} holds no {files}; put the published file there")
