"""Weights that a job starts from, and the options that it takes over from their training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from recon_ray.config.fields import option, with_option
from recon_ray.config.sections.common import JobConfig
from recon_ray.config.sections.foreign_model import ForeignModelSection
from recon_ray.errors import ConfigError
from recon_ray.weights.find import load_start
from recon_ray.weights.weight_files import LoadedWeights

ConfigT = TypeVar("ConfigT", bound=JobConfig)

logger = logging.getLogger(__name__)

#: Options that are null or auto until the records of the weights fill them, and the record of each.
RECORDED = {
    "data.num_points": "num_points",
    "up_axis": "up_axis",
    "retrieval.texts": "text",
    "teacher.image.name": "image_teacher",
    "teacher.text.name": "text_teacher",
    "zeroshot.kind": "zeroshot_kind",
}
_ABSENT = object()
#: What those options are where the weights are of no recorded training.
UNRECORDED = {
    "up_axis": "y",
    "retrieval.texts": "category",
    "teacher.image.name": "descriptor",
    "teacher.text.name": "descriptor",
}


def open_start(config: ConfigT, **sizes: Any) -> tuple[ConfigT, str, LoadedWeights]:  # noqa: ANN401
    """Read ``init_from``, and fill the options that are null from its training.

    Args:
        config: The job's configuration, with ``init_from`` and a section ``model``.
        sizes: Constructor arguments that the file does not record, besides those of the section.

    Returns:
        The configuration, the absolute place of the weights, and the weights.

    Raises:
        CheckpointError: If the weights cannot be read, or do not fit what was asked for.
        ConfigError: If there are none, or their number of points is not recorded.
    """
    model = option(config, "model")
    if isinstance(model, ForeignModelSection):  # else these are the sizes of the new model
        sizes |= model.model_dump(exclude={"published"})
    place, weights = load_start(option(config, "init_from"), published=model.published, **sizes)
    logger.info("%s", weights.described())
    image, text = (
        None
        if weights.architecture.get(f"{side}_dim") is None
        else str(weights.extra.get(f"{side}_teacher", f"the {side} teacher"))
        for side in ("image", "text")
    )
    kind = zeroshot_kind(image, text)
    return _filled(config, weights.extra, weights.source, kind), place, weights


def zeroshot_kind(image: str | None, text: str | None) -> Literal["full", "text", "image"]:
    """Return the kind of zero-shot that the teachers of a training allow.

    Args:
        image: Name of the image teacher, None without one.
        text: Name of the text teacher.

    Returns:
        ``full`` (both tokens) for the two towers of one model, which share a space.
    """
    if text is None and image is not None:
        return "image"
    same = text is not None and image == text and text.startswith("open_clip:")
    return "full" if same else "text"


def resolve(config: ConfigT) -> ConfigT:
    """Fill the options that are null from the weights of ``init_from``, or with their defaults.

    The errors are those of :func:`open_start`.
    """
    if option(config, "init_from", None) is None:
        return _filled(config, {}, "", "text")
    return open_start(config)[0]


def _filled(config: ConfigT, records: Mapping[str, Any], source: str, kind: str) -> ConfigT:
    defaults = {**UNRECORDED, "zeroshot.kind": kind}
    records_of = {**RECORDED, "data.num_points": getattr(config, "points_record", "num_points")}
    for path, record in records_of.items():
        asked = option(config, path, _ABSENT)
        if asked is _ABSENT:
            continue
        default = defaults.get(path, getattr(config, "default_num_points", None))
        known = records.get(record, default)
        is_open = asked == ("auto" if path in defaults else None)
        if is_open and known is None and path not in defaults:
            raise ConfigError(
                f"{path}: {source} does not record that of its training; set {path}=1024 "
                "(ModelNet as published), 2048 (ScanObjectNN), or as it was trained"
            )
        if is_open:
            config = with_option(config, path, known)
            if record in records or path == "zeroshot.kind":
                logger.info("%s=%s, as in the training of the weights", path, known)
        elif record in records and asked != known:
            logger.warning("%s=%s is used, the weights were trained with %s", path, asked, known)
    return config


def describe_weights(weights: LoadedWeights) -> dict[str, Any]:
    """Return the record of weights for ``result.json``: sizes, where they are from, training."""
    names = ("num_points", "normalize", "text", "up_axis", "image_teacher", "text_teacher")
    known = {name: weights.extra[name] for name in names if name in weights.extra}
    origins = {name: weights.origins.get(name, "file") for name in weights.sizes}
    return {
        "source": weights.source,
        "kind": weights.kind,
        "sizes": weights.sizes,
        "origins": origins,
        "training": known,
    }
