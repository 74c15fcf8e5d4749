"""The texts, pictures and queries of a search, checked in the driver."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import CheckpointError, ConfigError
from recon_ray.models.cloud import CloudModel
from recon_ray.tasks.config_checks import check_captions, class_texts, texts_of
from recon_ray.tasks.feature_extraction import check_cloud
from recon_ray.tasks.retrieve.config import RetrieveConfig
from recon_ray.tasks.retrieve.query_files import read_query
from recon_ray.tasks.retrieve.ranks import NO_GROUP
from recon_ray.tasks.retrieve.search import Pictures, Query, Texts
from recon_ray.tasks.teacher_features import (
    SOURCE,
    check_texts_known,
    check_width,
    make_image_teacher,
    make_text_teacher,
    stored_bank,
    stored_images,
)
from recon_ray.weights.weight_files import LoadedWeights

logger = logging.getLogger(__name__)


def _has_projection(weights: LoadedWeights, side: str) -> bool:
    """Return whether the weights have the projection of a side."""
    widths = {name: weights.architecture.get(f"{name}_dim") for name in ("image", "text")}
    if set(widths.values()) == {None}:
        raise CheckpointError(
            f"init_from: {weights.source} has no projection into the space of a teacher; give "
            "weights of a pre-training with teachers"
        )
    return widths[side] is not None


def texts_side(
    config: RetrieveConfig, prepared: PreparedSet, weights: LoadedWeights
) -> Texts | None:
    """Return the texts of the set; None without teacher or projection.

    Raises:
        ConfigError: If the set has no such texts, or the teacher is another one.
    """
    options = config.teacher.text
    if not _has_projection(weights, "text"):
        logger.info("%s has no text projection: texts are left out", weights.source)
        return None
    if options.name is None:
        return None
    if options.name == SOURCE:
        raise ConfigError(
            "teacher.text.name=source: texts are compared with the features of a teacher that can "
            "encode them; name it, table:<file> with its features, or null"
        )
    use_prompts = config.retrieval.texts == "category"
    every, numbers = _numbers(config, prepared)
    stored = stored_bank(options, prepared, every, use_prompts=use_prompts)
    teacher = stored or make_text_teacher(options)
    check_width("text", options.name, teacher.dim, weights, "text")
    used = sorted({number for number in numbers.values() if number != NO_GROUP})
    shown = list(dict.fromkeys(every)) if use_prompts else [every[number] for number in used]
    check_texts_known(teacher, shown, use_prompts=use_prompts)
    position = {text: place for place, text in enumerate(shown)}
    of = {
        i: NO_GROUP if number == NO_GROUP else position[every[number]]
        for i, number in numbers.items()
    }
    bank = None if stored is None else (stored, tuple(every))
    return Texts(options, use_prompts, tuple(shown), of, bank)


def _numbers(config: RetrieveConfig, prepared: PreparedSet) -> tuple[list[str], dict[int, int]]:
    """Return all texts of the set, and sample id to the number of a shape's text."""
    kind, column = config.retrieval.texts, "label"
    pictures_only = "teacher.text.name=null for pictures only"
    if kind == "caption":
        way = f"set retrieval.texts=category, or {pictures_only}"
        check_captions(prepared, config.retrieval.splits, "retrieval.texts=caption", or_else=way)
        column, every = "caption", texts_of(prepared, "caption")
        number: dict[Any, int] = {text: place for place, text in enumerate(every)}
    else:
        texts = class_texts(prepared, published=config.flags.published_texts)
        every = list(texts.values())
        number = {label: label for label in range(len(every))}
    numbers: dict[int, int] = {}
    for split in config.retrieval.splits:
        table = prepared.read(split, columns=[column])
        pairs = zip(table["sample_id"].to_pylist(), table[column].to_pylist(), strict=True)
        numbers |= {sample_id: number.get(value, NO_GROUP) for sample_id, value in pairs}
    if set(numbers.values()) <= {NO_GROUP}:
        raise ConfigError(
            f"retrieval.texts={kind}: the shapes of {', '.join(config.retrieval.splits)} in "
            f"{prepared.path} have no classes; set retrieval.texts=caption, or {pictures_only}"
        )
    return every, numbers


def pictures_side(
    config: RetrieveConfig, prepared: PreparedSet, weights: LoadedWeights
) -> Pictures | None:
    """Return the pictures of the set; None without teacher, projection or pictures.

    Raises:
        ConfigError: If the teacher is another one.
    """
    options = config.teacher.image
    if not _has_projection(weights, "image"):
        logger.info("%s has no image projection: pictures are left out", weights.source)
        return None
    if options.name is None:
        return None
    if options.name != SOURCE and not prepared.has_views:
        logger.info("%s has no pictures: they are left out", prepared.path)
        return None
    splits = config.retrieval.splits
    stored = stored_images(options, prepared, splits, verify=config.data.verify)
    teacher = stored or make_image_teacher(options)
    check_width("image", options.name, teacher.dim, weights, "image")
    if stored is not None:
        return Pictures(options, stored)
    files = []
    for split in map(prepared.split, splits):
        left = split.rows if config.data.limit is None else config.data.limit
        for path, rows in zip(split.views, split.shard_rows.tolist(), strict=True):
            files.append((path, min(rows, left)))
            left -= files[-1][1]
    return Pictures(options, files=tuple(one for one in files if one[1]))


def read_queries(config: RetrieveConfig, model: CloudModel) -> tuple[Query, ...]:
    """Read the queries.

    Raises:
        ConfigError: If a file is absent, or of no known kind.
        DataError: If it cannot be read, or has too few points for the model.
    """
    queries = tuple(
        read_query(text, config.data.num_points, config.up_axis, config.run.seed)
        for text in config.queries
    )
    for query in queries:
        if query.points is not None:
            check_cloud(query.text, len(query.points), model)
    return queries


def query_sides(
    config: RetrieveConfig, weights: LoadedWeights, queries: Sequence[Query]
) -> tuple[Texts | None, Pictures | None]:
    """Return the encoders of queries in words and in pictures; None for a kind without queries.

    Raises:
        ConfigError: If there is no teacher for them, or it is another one.
        TeacherError: If a table does not hold the words.
    """
    words = [query.text for query in queries if query.kind == "words"]
    shown = [query.text for query in queries if query.kind == "picture"]
    texts = pictures = None
    if words:
        name = _needed(config.teacher.text.name, weights, "text", words[0])
        teacher = make_text_teacher(config.teacher.text)
        check_width("text", name, teacher.dim, weights, "text")
        use_prompts = config.retrieval.texts == "category"
        check_texts_known(teacher, words, use_prompts=use_prompts)
        texts = Texts(config.teacher.text, use_prompts)
    if shown:
        name = _needed(config.teacher.image.name, weights, "image", shown[0])
        dim = make_image_teacher(config.teacher.image).dim
        check_width("image", name, dim, weights, "image")
        pictures = Pictures(config.teacher.image)
    return texts, pictures


def _needed(name: str | None, weights: LoadedWeights, side: str, query: str) -> str:
    """Return the name of the teacher that encodes a query; refuse weights without its space."""
    has_projection = _has_projection(weights, side)
    if name is None or name == SOURCE:
        raise ConfigError(
            f"teacher.{side}.name={name or 'null'}: the query {query!r} needs a teacher that "
            "encodes it; name the one of the pre-training"
        )
    if not has_projection:
        raise ConfigError(
            f"query={query}: {weights.source} has no {side} projection; give weights of a "
            f"pre-training with teacher.{side}, or search for something else"
        )
    return name
