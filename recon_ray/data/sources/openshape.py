"""OpenShape triplets: colored clouds with teacher features of pictures and texts.

``merged_for_training_final/<dataset>/<group>/<id>.npy`` holds a dict: xyz, rgb, image_feat,
thumbnail_feat, text, text_feat, blip_caption(_feat), msft_caption(_feat) and
retrieval_text(_feat); ``meta_data/split/train_all.json`` lists the shapes and
``meta_data/gpt4_filtering.json`` marks meaningless names.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recon_ray.data.format.files import file_sha256, visible
from recon_ray.data.readers.meshes import Shape, check_shape
from recon_ray.data.readers.pickles import load_object_array
from recon_ray.data.sources.base import Features, Item, Listing, Sample
from recon_ray.data.sources.cards import CARDS
from recon_ray.data.sources.layout import find_root, published_listing, read_json_file
from recon_ray.errors import DataError

logger = logging.getLogger(__name__)

#: Where the parts lie below the root, first the publishers' own layout.
SHAPES = ("objaverse-processed/merged_for_training_final", "merged_for_training_final")
LIST = "meta_data/split/train_all.json"
FILTER = "meta_data/gpt4_filtering.json"
TEACHER = "open_clip:ViT-bigG-14:laion2b_s39b_b160k"
NUM_VIEWS = 12
NUM_RETRIEVED = 3
#: Slots of the text features; the second names the variant of the feature that training reads.
TEXTS = (
    ("text", "prompt_avg"),
    ("blip_caption", "prompt_avg"),
    ("msft_caption", "prompt_avg"),
    ("retrieval_text", "original"),
)
NUM_TEXTS = len(TEXTS) - 1 + NUM_RETRIEVED
PROBED = 10  # shapes that are tried for the width of the features; some may be damaged
FILTERED_SET = "Objaverse"  # the only one with names that uploaders typed


@dataclass(frozen=True)
class OpenShapeSource:
    """The shapes of one or several of the sets.

    Attributes:
        folder: Folder of ``meta_data`` and the shapes.
    """

    folder: Path
    name: str = "openshape"

    def scan(self) -> Listing:
        """List the shapes of the split list, or without one all shapes.

        Raises:
            DataError: If there are no samples, or the list is damaged.
        """
        folder, card = Path(self.folder), CARDS[self.name]
        root = find_root(folder, lambda path: _shapes(path) is not None, f"{SHAPES[0]}/")
        shapes = _shapes(root) or root
        listed, filtered = root / LIST, root / FILTER
        files = _listed(listed) if listed.is_file() else _found(shapes)
        items = [_item(folder, shapes, file) for file in files]
        return published_listing(
            card,
            items,
            settings={"name_filter": file_sha256(filtered) if filtered.is_file() else None},
            features=self._features(items),
        )

    def _features(self, items: list[Item]) -> Features | None:
        """Return the shapes of the features of the first sample that can be read."""
        for item in items[:PROBED]:
            try:
                features = self.load(item).image_features
            except DataError:  # left out later, with its reason
                continue
            width = 0 if features is None else features.shape[1]
            return Features((1 + NUM_VIEWS, width), (NUM_TEXTS, width), TEACHER)
        return None

    def load(self, item: Item) -> Sample:
        """Read one shape with its features; absent ones are zero."""
        path = Path(self.folder) / item.file
        content = load_object_array(path)
        if not isinstance(content, dict):
            raise DataError(f"{path}: holds {type(content).__name__} instead of a dict")
        if self._hides_name(path):
            content |= {"text": None, "text_feat": None}
        try:
            shape, images = _cloud(content, path), _image_features(content)
            texts, caption = _text_features(content, images.shape[1]), _caption(content)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path}: is not an OpenShape sample ({type(error).__name__}: {error})"
            ) from error
        check_shape(shape, str(path))
        return Sample(shape, caption=caption, image_features=images, text_features=texts)

    def _hides_name(self, path: Path) -> bool:
        """Return whether the publishers' filter calls the name of a shape meaningless."""
        if FILTERED_SET not in path.parts:
            return False
        root = find_root(Path(self.folder), lambda p: _shapes(p) is not None, SHAPES[0])
        listed = root / FILTER
        return path.stem in _meaningless(listed) if listed.is_file() else False


def _shapes(root: Path) -> Path | None:
    return next((root / place for place in SHAPES if (root / place).is_dir()), None)


def _listed(path: Path) -> list[Path]:
    """Read the split list: dataset, group and id of every shape."""
    entries = read_json_file(path)
    try:
        return [
            Path(*(str(entry[key]) for key in ("dataset", "group") if entry.get(key)))
            / f"{entry['id']}.npy"
            for entry in entries
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: is not a list of dataset, group and id; fetch it again"
        ) from error


def _found(shapes: Path) -> list[Path]:
    logger.warning("%s: no %s, all shapes there are taken", shapes, Path(LIST).name)
    return [path.relative_to(shapes) for path in visible(shapes, "**/*.npy")]


def _item(folder: Path, shapes: Path, file: Path) -> Item:
    path = shapes / file
    return Item(
        object_id=file.as_posix().removesuffix(".npy"),
        split="train",
        file=path.relative_to(folder).as_posix(),
        size_bytes=path.stat().st_size if path.is_file() else -1,
    )


@functools.lru_cache(maxsize=1)
def _meaningless(path: Path) -> frozenset[str]:
    """Return the ids whose names the filter rejects."""
    flags = read_json_file(path)
    if not isinstance(flags, dict):
        raise DataError(f"{path}: is not a table of flags by id; fetch it again")
    verdicts = {key: v.get("flag") if isinstance(v, dict) else v for key, v in flags.items()}
    return frozenset(key for key, verdict in verdicts.items() if verdict == "N")


# The content of a shape


def _cloud(content: dict[str, Any], path: Path) -> Shape:
    points, colors = np.asarray(content["xyz"], np.float64), np.asarray(content["rgb"])
    if points.ndim != 2 or points.shape[1] != 3 or colors.shape != points.shape:
        found = f"{points.shape} and {colors.shape}"
        raise DataError(f"{path}: xyz and rgb are {found}; expected (points, 3) of both")
    if colors.dtype != np.uint8:  # 0 to 1
        colors = np.clip(np.rint(colors.astype(np.float64) * 255), 0, 255).astype(np.uint8)
    return Shape(points, colors=colors)


def _image_features(content: dict[str, Any]) -> np.ndarray:
    """Return (1 + 12, D): the thumbnail, zero where it is missing, and the rendered views."""
    if content["image_feat"] is None:
        raise ValueError("image_feat is None: the features of its pictures are missing")
    found = np.asarray(content["image_feat"], np.float32)
    views = found.reshape(-1, found.shape[-1])
    if len(views) > NUM_VIEWS:
        raise ValueError(f"image_feat has {len(views)} views instead of {NUM_VIEWS}")
    features = np.zeros((1 + NUM_VIEWS, views.shape[1]), np.float32)
    if content.get("thumbnail_feat") is not None:
        features[0] = np.asarray(content["thumbnail_feat"], np.float32).reshape(-1)
    features[1 : 1 + len(views)] = views
    return features


def _text_features(content: dict[str, Any], width: int) -> np.ndarray:
    """Return (3 + 3, D): of the name, the two captions and up to three retrieved texts."""
    features = np.zeros((NUM_TEXTS, width), np.float32)
    for slot, (name, variant) in enumerate(TEXTS):
        found = content.get(f"{name}_feat")
        count = NUM_RETRIEVED if name == "retrieval_text" else 1
        listed = found if isinstance(found, list) else [found]
        for offset, feature in enumerate([f for f in listed if f is not None][:count]):
            value = feature[variant] if isinstance(feature, dict) else feature
            features[slot + offset] = np.asarray(value, np.float32).reshape(-1)
    return features


def _caption(content: dict[str, Any]) -> str:
    """Return the first text that is not empty."""
    values = [content.get(name) for name, _ in TEXTS]
    texts = [v for found in values for v in (found if isinstance(found, list | tuple) else [found])]
    return next((str(text) for text in texts if text), "")
