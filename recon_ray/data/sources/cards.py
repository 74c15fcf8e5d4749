"""Facts about the published data sets: classes, sizes, axes, terms, and how to know their lists.

A card holds no data. The lists of a data set are read from the user's folder; the hashes here tell
whether they are the official ones.
"""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from recon_ray.data.sources.class_names import (
    MODELNET10,
    MODELNET40,
    SCANOBJECTNN,
    SHAPENET55,
    SHAPENETPART,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDTH = 100
SHAPENET_TERMS = "ShapeNet's terms: non-commercial research and education"
MODELNET_TERMS = "academic research only; the meshes remain their authors'"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known about a published data set.

    Attributes:
        name: Name of the source that reads it.
        title: Name in the literature.
        classes: Class names in label order; empty if it has none.
        texts: What a prompt says of each class.
        counts: Published number of samples of each split.
        num_points: Points of a sample in the published experiments.
        up_axis: The axis that points up in the published clouds.
        normalization: When a cloud is centered and scaled to the unit sphere: ``whole``, before the
            points of a step are chosen; ``subset``, after that; ``none``, never.
        variants: The layouts in which it is offered and read.
        license: Terms of use, in short.
        url: The publisher's page.
        lists: SHA-256 of the official split lists by file name.
        parts: Part numbers of every class, for part segmentation.
        notes: What else a user has to know.
    """

    name: str
    title: str
    classes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    num_points: int
    up_axis: str = "y"
    normalization: Literal["whole", "subset", "none"]
    variants: tuple[str, ...] = ()
    license: str
    url: str
    lists: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: str = ""


def describe(card: Card) -> str:
    """Return a card as text to read."""
    counts = ", ".join(f"{split} {count:,}" for split, count in card.counts.items())
    when = {
        "whole": "every cloud is centered and scaled to the unit sphere before points are chosen",
        "subset": "points are chosen first, then centered and scaled to the unit sphere",
        "none": "none: coordinates are used as they are",
    }
    lines = {
        "samples": counts or "as many as the folder holds",
        "points": f"{card.num_points:,} a shape, {card.up_axis} up",
        "normalization": when[card.normalization],
        "layouts": "; ".join(card.variants),
        "classes": _named_classes(card),
        "parts": f"{sum(map(len, card.parts.values()))} in all" if card.parts else "",
        "lists": "; ".join(f"{name} sha256 {value[:12]}" for name, value in card.lists.items()),
        "license": card.license,
        "from": card.url,
        "notes": card.notes,
    }
    body = [_paragraph(name, text) for name, text in lines.items() if text]
    return "\n".join([f"{card.name}: {card.title}", *body])


def as_record(card: Card) -> dict[str, Any]:
    """Return a card as plain values that JSON can hold."""
    record = asdict(card)
    record["parts"] = {name: list(parts) for name, parts in card.parts.items()}
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in record.items()
    }


def _named_classes(card: Card) -> str:
    if not card.classes:
        return "none"
    texts = card.texts or card.classes
    names = [
        name if text == name else f"{name} ({text})"
        for name, text in zip(card.classes, texts, strict=True)
    ]
    return f"{len(names)}: {'; '.join(names)}"


def _paragraph(name: str, text: str) -> str:
    indent = " " * 16
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=f"  {name:<14}",
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def _modelnet(count: int, classes: tuple[str, ...], train: int, test: int) -> Card:
    lists = {
        "modelnet40_train.txt": "680a9816b58ddf1a7fce32df25c0bc23345125757e590f9ed578fed9277d3d07",
        "modelnet40_test.txt": "61829b2195f6a812e8f88b2ff0ddae875ea585ad18c015147ae2302bc55954ab",
        "modelnet40_shape_names.txt": (
            "4669aca4ab81a08cdbec34c780c6d4f399cee81ebb8701c97fa0ec3bfc261b71"
        ),
    }
    return Card(
        name=f"modelnet{count}",
        title=f"ModelNet{count}",
        classes=classes,
        texts=classes,
        counts={"train": train, "test": test},
        num_points=8192,
        normalization="whole",
        variants=(
            "modelnet40_normal_resampled: 10,000 points a text file, y up, reduced to 8,192 by "
            "farthest points",
            f"modelnet{count}_{{train,test}}_8192pts_fps.dat: pickles of 8,192 points, y up",
            "<class>/{train,test}/*.off: meshes, z up",
            "*train*.h5, *test*.h5: 2,048 points, y up",
            "<class>/{train,test}/*.pcd: clouds, z up",
        ),
        license=MODELNET_TERMS,
        url="https://modelnet.cs.princeton.edu",
        lists=lists if count == 40 else {},
        notes="Class names keep their underscores in prompts.",
    )


def _scanobjectnn(name: str, title: str, train: int, test: int, files: str) -> Card:
    return Card(
        name=f"scanobjectnn_{name}",
        title=f"ScanObjectNN {title}",
        classes=SCANOBJECTNN,
        texts=SCANOBJECTNN,
        counts={"train": train, "test": test},
        num_points=2048,
        normalization="none",
        variants=(files,),
        license="research only, under the terms that the publishers ask to agree to",
        url="https://hkust-vgd.github.io/scanobjectnn",
        notes="The reference's prompts misspell the last class; here it is toilet.",
    )


def _shapenet55() -> Card:
    return Card(
        name="shapenet55",
        title="ShapeNet-55 with one picture a shape",
        classes=tuple(text.split(",")[0] for _, text in SHAPENET55),
        texts=tuple(text for _, text in SHAPENET55),
        counts={"train": 41952, "test": 10518},
        num_points=8192,
        normalization="subset",
        variants=(
            "shapenet_pc/<synset>-<model>.npy, shapenet_img/<same>.png, "
            "ShapeNet-55/{train,test}.txt, shapenet55.json",
        ),
        license=SHAPENET_TERMS,
        url="https://shapenet.org",
        lists={
            "train.txt": "58c88661f4c63887d78e7a17966419aefaac1c1c5216eb35449726e33b9aa334",
            "test.txt": "061e28e16be2cbcd55b32919d4920e4f009b4cf30a5e77e0e64627462557ffb0",
        },
        notes="Counts and hashes are those of the usual lists; the lists that go with the pictures "
        "leave out shapes without one. Pre-training reads both splits.",
    )


def _shapenetpart() -> Card:
    return Card(
        name="shapenetpart",
        title="ShapeNetPart",
        classes=tuple(SHAPENETPART),
        texts=tuple(SHAPENETPART),
        counts={"train": 12137, "val": 1870, "test": 2874},
        num_points=2048,
        normalization="whole",
        variants=(
            "<synset>/<model>.txt (x y z nx ny nz part), synsetoffset2category.txt, "
            "train_test_split/shuffled_{train,val,test}_file_list.json",
        ),
        license=SHAPENET_TERMS,
        url="https://shapenet.org",
        lists={
            "shuffled_train_file_list.json": (
                "d09ab4826e3faf870cf130b772a0a52ddc1960261319210ff090413bb82b9e27"
            ),
            "shuffled_val_file_list.json": (
                "6f2c71ae3b3dbf60f6987770f14001bb1f5b90d4f2903f83a5fa9df012be2837"
            ),
            "shuffled_test_file_list.json": (
                "5cbace3de0c18b3a33504d40c1ddb3baa6a9cf158f5c3cb60450b3cf715042ec"
            ),
        },
        parts=SHAPENETPART,
        notes="Shapes vary in their number of points and keep all of them; 2,048 are drawn with "
        "replacement in use. The published experiments train on train and val together. In the "
        "official lists 9 shapes are in train and val, 23 in train and test, 3 in val and test; "
        "all are kept, the second with its split's name in the id.",
    )


def _fewshot() -> Card:
    return Card(
        name="fewshot",
        title="ModelNet40 few-shot episodes",
        classes=MODELNET40,
        texts=MODELNET40,
        num_points=8192,
        normalization="whole",
        variants=("{5,10}way_{10,20}shot/{0..9}.pkl", "drawn from a prepared ModelNet40 by seed"),
        license=MODELNET_TERMS,
        url="https://modelnet.cs.princeton.edu",
        notes="An episode trains on way x shot shapes and tests on way x 20; labels are 0 to way-1 "
        "within an episode.",
    )


def _openshape() -> Card:
    return Card(
        name="openshape",
        title="OpenShape triplets of Objaverse, ShapeNet, ABO and 3D-FUTURE",
        num_points=10000,
        normalization="subset",
        variants=(
            "<dataset>/<group>/<id>.npy with colors and teacher features, "
            "meta_data/split/train_all.json",
        ),
        license="each shape has its publisher's terms: see the four data sets",
        url="https://colin97.github.io/OpenShape",
        notes="Features are of the ViT-bigG-14 teacher of the publishers: a thumbnail and 12 "
        "views, and up to six texts a shape; absent ones are zero.",
    )


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        _shapenet55(),
        _modelnet(40, MODELNET40, 9843, 2468),
        _modelnet(10, MODELNET10, 3991, 908),
        _scanobjectnn("obj_bg", "OBJ_BG", 2309, 581, "main_split/{training,test}_objectdataset.h5"),
        _scanobjectnn(
            "obj_only", "OBJ_ONLY", 2309, 581, "main_split_nobg/{training,test}_objectdataset.h5"
        ),
        _scanobjectnn(
            "pb_t50_rs",
            "PB_T50_RS",
            11416,
            2882,
            "main_split/{training,test}_objectdataset_augmentedrot_scale75.h5",
        ),
        _shapenetpart(),
        _fewshot(),
        _openshape(),
    )
}  # by the name of the source
