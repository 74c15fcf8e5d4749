"""What a search compares: texts, pictures, and what is searched for; checked in the driver."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import CheckpointError, ConfigError, DataError
from recon_ray.models.cloud import CloudModel
from recon_ray.tasks.classify.classifier_checks import class_texts
from recon_ray.tasks.config_checks import texts_of
from recon_ray.tasks.retrieve.config import RetrieveConfig
from recon_ray.tasks.retrieve.query_files import read_query
from recon_ray.tasks.retrieve.ranks import NO_GROUP
from recon_ray.tasks.retrieve.search import Pictures, Query, Texts
from recon_ray.tasks.teacher_features import (
    SOURCE,
    make_image_teacher,
    make_text_teacher,
    stored_bank,
    stored_images,
)
from recon_ray.teachers.bank import text_bank
from recon_ray.teachers.feature_table import TableTextTeacher
from recon_ray.weights.weight_files import LoadedWeights

logger = logging.getLogger(__name__)


def searched_splits(config: RetrieveConfig) -> list[str]:
    """Names of the splits that are searched, each once."""
    return list(dict.fromkeys(config.retrieval.splits))


def projection_width(weights: LoadedWeights, side: str) -> int | None:
    """Width of a projection.

    Raises:
        CheckpointError: If the weights have none at all.
    """
    widths = [weights.architecture.get(f"{name}_dim") for name in ("image", "text")]
    if widths == [None, None]:
        raise CheckpointError(
            f"init_from: {weights.source} has no projection into the space of a teacher; give "
            "weights of a pre-training with teachers"
        )
    width: int | None = weights.architecture.get(f"{side}_dim")
    return width


def _check_width(side: str, name: str, found: int, weights: LoadedWeights, width: int) -> None:
    if found != width:
        raise ConfigError(
            f"teacher.{side}.name={name}: its features are {found} wide, the {side} projection of "
            f"{weights.source} gives {width}; name the teacher of the pre-training, or null"
        )


def texts_side(
    config: RetrieveConfig, prepared: PreparedSet, weights: LoadedWeights
) -> Texts | None:
    """The texts, and see that their teacher fits; None without teacher or projection.

    Raises:
        ConfigError: If the set has no such texts, or the teacher is another one.
    """
    options, width = config.teacher.text, projection_width(weights, "text")
    if options.name is None or width is None:
        if width is None:
            logger.info("%s has no text projection: texts are left out", weights.source)
        return None
    if options.name == SOURCE:
        raise ConfigError(
            "teacher.text.name=source: texts are compared with the features of a teacher that can "
            "encode them; name it, table:<file> with its features, or null"
        )
    use_prompts = config.retrieval.texts == "category"
    every, numbers = _numbers(config, prepared)
    stored = stored_bank(options, prepared, every, use_prompts=use_prompts)
    teacher_or_bank = stored or make_text_teacher(options)
    assert teacher_or_bank is not None
    _check_width("text", options.name, teacher_or_bank.dim, weights, width)
    used = sorted({number for number in numbers.values() if number != NO_GROUP})
    shown = list(dict.fromkeys(every)) if use_prompts else [every[number] for number in used]
    position = {text: place for place, text in enumerate(shown)}
    if isinstance(teacher_or_bank, TableTextTeacher):
        text_bank(teacher_or_bank, shown, use_prompts=use_prompts)  # tells now what it lacks
    of = {
        i: NO_GROUP if number == NO_GROUP else position[every[number]]
        for i, number in numbers.items()
    }
    bank = None if stored is None else (stored, tuple(every))
    return Texts(options, use_prompts, tuple(shown), of, bank)


def _numbers(config: RetrieveConfig, prepared: PreparedSet) -> tuple[list[str], dict[int, int]]:
    """All texts of the set, and sample id to the number of a shape's text.

    Raises:
        ConfigError: If no shape has one.
    """
    kind, column = config.retrieval.texts, "label"
    if kind == "caption":
        column, every = "caption", texts_of(prepared, "caption")
        number: dict[Any, int] = {text: place for place, text in enumerate(every) if text}
    else:
        texts = class_texts(prepared, follows_reference=config.protocol == "reference")
        every = list(texts.values())
        number = {label: label for label in range(len(every))}
    numbers: dict[int, int] = {}
    for split in searched_splits(config):
        table = prepared.read(split, columns=[column])
        pairs = zip(table["sample_id"].to_pylist(), table[column].to_pylist(), strict=True)
        numbers |= {sample_id: number.get(value, NO_GROUP) for sample_id, value in pairs}
    if set(numbers.values()) <= {NO_GROUP}:
        what, other = ("captions", "category") if kind == "caption" else ("classes", "caption")
        raise ConfigError(
            f"retrieval.texts={kind}: the shapes of {', '.join(searched_splits(config))} in "
            f"{prepared.path} have no {what}; set retrieval.texts={other}, or "
            "teacher.text.name=null for pictures only"
        )
    return every, numbers


def pictures_side(
    config: RetrieveConfig, prepared: PreparedSet, weights: LoadedWeights
) -> Pictures | None:
    """The pictures, and see that their teacher fits; None without teacher, projection or pictures.

    Raises:
        ConfigError: If the teacher is another one.
    """
    options, width = config.teacher.image, projection_width(weights, "image")
    if options.name is None or width is None:
        if width is None:
            logger.info("%s has no image projection: pictures are left out", weights.source)
        return None
    if options.name != SOURCE and not prepared.has_views:
        logger.info("%s has no pictures: they are left out", prepared.path)
        return None
    splits = searched_splits(config)
    stored = stored_images(options, prepared, splits, verify=config.data.verify)
    teacher = stored or make_image_teacher(options)
    _check_width("image", options.name, teacher.dim, weights, width)
    if stored is not None:
        return Pictures(options, stored)
    files = []
    for split in map(prepared.split, splits):
        left = split.rows if config.data.limit is None else config.data.limit
        for path, rows in zip(split.views, split.shard_rows, strict=True):
            files.append((str(path), min(rows, left)))
            left -= files[-1][1]
    return Pictures(options, files=tuple(one for one in files if one[1]))


def read_queries(config: RetrieveConfig, model: CloudModel) -> tuple[Query, ...]:
    """Read what is searched for.

    Raises:
        ConfigError: If a file is absent, or of no known kind.
        DataError: If it cannot be read, or has too few points for the model.
    """
    queries = tuple(
        read_query(text, config.data.num_points, config.up_axis, config.run.seed)
        for text in config.queries
    )
    needed = max(model.num_groups, model.group_size)
    for query in queries:
        if query.points is not None and len(query.points) < needed:
            raise DataError(
                f"{query.text}: {len(query.points)} points are too few for the model's "
                f"{model.num_groups} patches of {model.group_size} points; leave it out"
            )
    return queries


def query_sides(
    config: RetrieveConfig, weights: LoadedWeights, queries: Sequence[Query]
) -> tuple[Texts | None, Pictures | None]:
    """What encodes the queries in words and in pictures, as far as there are such.

    Raises:
        ConfigError: If there is no teacher for them, or it is another one.
        TeacherError: If a table does not hold the words.
    """
    words = [query.text for query in queries if query.kind == "words"]
    shown = [query.text for query in queries if query.kind == "picture"]
    texts = pictures = None
    if words:
        width, name = _needed(config, weights, "text", words[0])
        teacher = make_text_teacher(config.teacher.text)
        assert teacher is not None
        _check_width("text", name, teacher.dim, weights, width)
        use_prompts = config.retrieval.texts == "category"
        if isinstance(teacher, TableTextTeacher):  # tells now what it lacks
            text_bank(teacher, words, use_prompts=use_prompts)
        texts = Texts(config.teacher.text, use_prompts)
    if shown:
        width, name = _needed(config, weights, "image", shown[0])
        encoder = make_image_teacher(config.teacher.image)
        _check_width("image", name, encoder.dim, weights, width)
        pictures = Pictures(config.teacher.image)
    return texts, pictures


def _needed(
    config: RetrieveConfig, weights: LoadedWeights, side: str, query: str
) -> tuple[int, str]:
    """Width of the projection that a query needs, and the name of the teacher."""
    width = projection_width(weights, side)
    name = config.teacher.text.name if side == "text" else config.teacher.image.name
    if name in (None, SOURCE):
        raise ConfigError(
            f"teacher.{side}.name={name or 'null'}: the query {query!r} needs a teacher that "
            "encodes it; name the one of the pre-training"
        )
    if width is None:
        raise ConfigError(
            f"query={query}: {weights.source} has no {side} projection; give weights of a "
            f"pre-training with teacher.{side}, or search for something else"
        )
    return width, str(name)
