"""From the configuration to the teachers: run online, cached, or shipped by the source."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from recon_ray.config.sections.training import ImageEncoderSection, TextTeacherSection
from recon_ray.data.format.prepared import PreparedSet, Verify
from recon_ray.data.format.stored_features import StoredFeatures, joined_features, source_features
from recon_ray.data.loading.images import IMAGES_VERSION, ImageTransform
from recon_ray.errors import ConfigError, TeacherError
from recon_ray.storage import Place
from recon_ray.tasks.cache_teachers.config import CacheSection, CacheTeachersConfig
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.teachers.bank import text_bank
from recon_ray.teachers.cache import (
    Identity,
    StoredBank,
    TeacherCache,
    captions_identity,
    difference,
    find_caches,
    text_identity,
    views_identity,
)
from recon_ray.teachers.create import create_image_teacher, create_text_teacher
from recon_ray.teachers.feature_table import TableTextTeacher
from recon_ray.teachers.protocol import ImageTeacher, Precision, TextTeacher
from recon_ray.teachers.specification import parse_specification
from recon_ray.weights.weight_files import LoadedWeights

logger = logging.getLogger(__name__)

#: Name of the teacher whose features came with the data set.
SOURCE = "source"


@dataclass(frozen=True)
class StoredTeachers:
    """Teachers' features that are read in the training instead of computed; picklable.

    Attributes:
        image: Image features of the training split, None to run the teacher.
        text: Text features of the training samples, None to encode their classes or captions.
        bank: Cache that holds the features of all texts, None to encode them.
    """

    image: StoredFeatures | None = None
    text: StoredFeatures | None = None
    bank: StoredBank | None = None

    @property
    def features(self) -> tuple[StoredFeatures, ...]:
        """Features that are read beside the training rows."""
        return tuple(one for one in (self.image, self.text) if one is not None)


def stored_teachers(
    config: PretrainConfig,
    prepared: PreparedSet,
    texts: Sequence[str],
    *,
    captions: StoredFeatures | None = None,
) -> StoredTeachers:
    """Find the stored features of the configured teachers, and of the texts.

    Args:
        config: The job's configuration.
        prepared: The set.
        texts: All texts, for a bank.
        captions: What :func:`stored_captions` has found.

    Raises:
        ConfigError: If features are configured that are not there, or are another teacher's.
        DataError: If a cache is damaged.
        TeacherError: If the teacher, whose identity the cache must have, cannot be loaded.
    """
    options, verify = config.teacher, config.data.verify
    image, text = None, captions
    splits = [split.name for split in prepared.join(config.data.train_splits).members]
    if options.image.name == SOURCE:
        image = _of_source(prepared, "image_features", splits)
    elif options.image.name is not None and options.image.mode == "cached":
        cache = _image_cache(config, prepared, splits)
        image = _of_cache(cache, prepared, splits, verify=verify)
    if options.text.name == SOURCE:
        text = _of_source(prepared, "text_features", splits)
    bank = None
    if captions is None and options.text.name not in (None, SOURCE):
        use_prompts = config.data.text == "category"
        bank = stored_bank(options.text, prepared, texts, use_prompts=use_prompts)
    return StoredTeachers(image, text, bank)


def _of_source(prepared: PreparedSet, column: str, splits: Sequence[str]) -> StoredFeatures:
    return joined_features([source_features(prepared, column, split) for split in splits])


def _image_cache(
    config: PretrainConfig, prepared: PreparedSet, splits: Sequence[str]
) -> TeacherCache:
    options = config.teacher.image
    if options.cache is not None:
        return _named_cache(config, options.cache, prepared, splits)
    fitting, reason = _fitting_caches(options, prepared, splits)
    if not fitting:
        nearest = f" (the nearest is {reason})" if reason else ""
        raise ConfigError(
            f"teacher.image.mode=cached: {prepared.path} has no features of {options.name} as "
            f"configured{nearest}; make them: {cache_command(config)}"
        )

    def preference(cache: TeacherCache) -> tuple[bool, int]:
        choices = cache.identity["choices"]
        return int(choices["seed"]) == config.run.seed, int(choices["copies"])

    return sorted(fitting, key=preference)[-1]


def _fitting_caches(
    options: ImageEncoderSection, prepared: PreparedSet, splits: Sequence[str]
) -> tuple[list[TeacherCache], str | None]:
    """Find the caches with all splits, else the reason why the nearest does not fit."""
    found, reason = find_caches(prepared, _wanted_images(options, prepared))
    fitting = [cache for cache in found if _absent(cache, splits) is None]
    if found and not fitting:
        reason = f"{found[-1].path.name}: {_absent(found[-1], splits)}"
    return fitting, reason


def _absent(cache: TeacherCache, splits: Sequence[str]) -> str | None:
    """Return a sentence on the first split that a cache of images lacks, None if it has all."""
    has = cache.manifest["splits"]
    lacks = next((split for split in splits if split not in has), None)
    return None if lacks is None else f"it holds {', '.join(has) or 'no split'}, not {lacks!r}"


def _named_cache(
    config: PretrainConfig, path: str, prepared: PreparedSet, splits: Sequence[str]
) -> TeacherCache:
    if not (place := Place.of(path)).is_dir():
        raise ConfigError(
            f"teacher.image.cache={path}: no such folder; leave it out, or make the cache: "
            f"{cache_command(config)}"
        )
    cache, wanted = TeacherCache.open(place), _wanted_images(config.teacher.image, prepared)
    wrong = difference(cache.identity, wanted) or _absent(cache, splits)
    if wrong is not None:
        raise ConfigError(
            f"teacher.image.cache={path}: it does not fit ({wrong}); leave it out, change the "
            f"option, or make another: {cache_command(config)}"
        )
    return cache


def _wanted_images(options: ImageEncoderSection, prepared: PreparedSet) -> Identity:
    """Return the identity that a cache must have; pinned weights are not loaded for their hash."""
    if options.sha256 is None:
        return image_identity(make_image_teacher(options), options, prepared)
    return {
        "kind": "image",
        "teacher": _pinned(options),
        "preprocessing": _preprocessing(options),
        "set": views_identity(prepared),
    }


def _pinned(options: ImageEncoderSection | TextTeacherSection) -> dict[str, str]:
    """Return what a cache must say of weights that are pinned and not loaded."""
    assert options.name is not None
    assert options.sha256 is not None
    specification = parse_specification(options.name)
    # The same weights give other features in another architecture, such as one with QuickGELU.
    named = {"name": specification.name} if specification.family in ("open_clip", "timm") else {}
    return {"sha256": options.sha256.strip().lower()} | named


def image_identity(
    teacher: ImageTeacher, options: ImageEncoderSection, prepared: PreparedSet
) -> dict[str, Any]:
    """Name the image features of a set: teacher, preprocessing and pictures."""
    mean, std = list(teacher.mean), list(teacher.std)
    constants = {"image_size": teacher.image_size, "mean": mean, "std": std}
    return {
        "kind": "image",
        "teacher": dict(teacher.identity),
        "preprocessing": {**_preprocessing(options), **constants},
        "set": views_identity(prepared),
    }


def _preprocessing(options: ImageEncoderSection) -> dict[str, Any]:
    return {
        "augment": options.augment,
        "statistics": options.statistics,
        "bgr": options.bgr,
        "images_version": IMAGES_VERSION,
    }


def stored_bank(
    options: TextTeacherSection,
    prepared: PreparedSet,
    texts: Sequence[str],
    *,
    use_prompts: bool = True,
) -> StoredBank | None:
    """Find the bank of texts, each in the 60 prompts by default; None if it has to be computed.

    Raises:
        TeacherError: If the teacher whose bank is searched cannot be loaded.
    """
    if not find_caches(prepared, {"kind": "text"})[0]:
        return None
    pinned = options.sha256 is not None
    identity = _pinned(options) if pinned else make_text_teacher(options).identity
    fitting, _ = find_caches(prepared, text_identity(identity, texts, use_prompts=use_prompts))
    return StoredBank(fitting[0]) if fitting else None


def stored_captions(config: PretrainConfig, prepared: PreparedSet) -> StoredFeatures | None:
    """Find the features of the captions of the training shapes; None if a bank is to hold them.

    Raises:
        DataError: If a cache is damaged.
        TeacherError: If the teacher whose cache is searched cannot be loaded.
    """
    options = config.teacher.text
    if config.data.text != "caption" or options.name in (None, SOURCE):
        return None
    if not find_caches(prepared, {"kind": "captions"})[0]:
        return None
    pinned = options.sha256 is not None
    identity = _pinned(options) if pinned else make_text_teacher(options).identity
    splits = [split.name for split in prepared.join(config.data.train_splits).members]
    fitting, _ = find_caches(prepared, captions_identity(identity, prepared))
    for cache in fitting:
        if _absent(cache, splits) is None:
            verify = config.data.verify
            parts = [cache.text_features(prepared, name, verify=verify) for name in splits]
            return replace(joined_features(parts), identity=parts[0].identity)
    return None


def stored_images(
    options: ImageEncoderSection,
    prepared: PreparedSet,
    splits: Sequence[str],
    *,
    verify: Verify,
) -> StoredFeatures | None:
    """Find image features of splits, of the source or in a cache; None if they must be computed.

    ``verify`` compares the SHA-256 of a cache's files with its manifest.

    Raises:
        ConfigError: If features of the source are configured and the set has none.
        DataError: If a cache is damaged.
        TeacherError: If the teacher whose cache is searched cannot be loaded.
    """
    if options.name == SOURCE:
        return _of_source(prepared, "image_features", splits)
    if not find_caches(prepared, {"kind": "image"})[0]:
        return None
    fitting, _ = _fitting_caches(options, prepared, splits)
    return _of_cache(fitting[-1], prepared, splits, verify=verify) if fitting else None


def _of_cache(
    cache: TeacherCache, prepared: PreparedSet, splits: Sequence[str], *, verify: Verify
) -> StoredFeatures:
    return joined_features([cache.image_features(prepared, s, verify=verify) for s in splits])


def cache_command(config: PretrainConfig) -> str:
    """Return the command that makes the cache for a configuration."""
    now, usual = config.model_dump(), CacheTeachersConfig().model_dump()
    words = ["python", "jobs/cache_teachers.py", f"data.path={config.data.path}"]
    for section, names in _CACHE_OPTIONS.items():
        for name in names:
            value, default = _at(now, f"{section}.{name}"), _at(usual, f"{section}.{name}")
            if value == SOURCE:
                value = None
            if value != default or name == "name":
                text = {None: "null", True: "true", False: "false"}.get(value, str(value))
                words.append(f"{section}.{name}={text}")
    splits = tuple(dict.fromkeys(config.data.train_splits))
    if splits != CacheSection().splits:
        words.append(f"cache.splits=[{', '.join(splits)}]")
    return " ".join(shlex.quote(word) for word in words)


_CACHE_OPTIONS = {
    "teacher.image": ("name", "sha256", "augment", "statistics", "bgr"),
    "teacher.text": ("name", "sha256"),
    "data": ("text",),
    "run": ("seed",),
}


def _at(tree: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 - the value of any option
    for part in key.split("."):
        tree = tree[part]
    return tree


# -- Making teachers -----------------------------------------------------------------------------


def image_transform(teacher: ImageTeacher, options: ImageEncoderSection) -> ImageTransform:
    """Return the augmentation and size of pictures for a teacher."""
    return ImageTransform(kind=options.augment, image_size=teacher.image_size, bgr=options.bgr)


def make_image_teacher(
    options: ImageEncoderSection, *, precision: Precision = "fp32", sha256: str | None = None
) -> ImageTeacher:
    """Make the configured image teacher on the CPU.

    Args:
        options: Its section, with a name.
        precision: Precision of the forward pass.
        sha256: Hash that the weights must have besides the configured one.

    Raises:
        TeacherError: If it cannot be loaded; the message names the section.
    """
    assert options.name is not None
    with _naming("teacher.image"):
        return create_image_teacher(
            options.name,
            sha256=sha256 or options.sha256,
            statistics=options.statistics,
            precision=precision,
        )


def make_text_teacher(options: TextTeacherSection) -> TextTeacher:
    """Make the configured text teacher, which has a name, on the CPU.

    Raises:
        TeacherError: If it cannot be loaded; the message names the section.
    """
    assert options.name is not None
    with _naming("teacher.text"):
        return create_text_teacher(options.name, sha256=options.sha256)


@contextmanager
def _naming(section: str) -> Iterator[None]:
    """Put the section of the options at the head of a teacher's error."""
    try:
        yield
    except TeacherError as error:
        raise type(error)(f"{section}: {error}") from error


# -- Checks --------------------------------------------------------------------------------------


def check_width(side: str, name: str, dim: int, weights: LoadedWeights, projection: str) -> None:
    """Refuse a teacher whose features have another width than a projection of the model.

    Raises:
        ConfigError: Naming the option.
    """
    width = weights.architecture[f"{projection}_dim"]
    if dim != width:
        raise ConfigError(
            f"teacher.{side}.name={name}: its features are {dim} wide, the {projection} projection "
            f"of {weights.source} gives {width}; name the teacher of the pre-training"
        )


def check_texts_known(
    teacher: TextTeacher | StoredBank, texts: Sequence[str], *, use_prompts: bool = True
) -> None:
    """Refuse a table of features that lacks a text, before anything starts.

    Raises:
        TeacherError: Naming the first one.
    """
    if isinstance(teacher, TableTextTeacher):
        text_bank(teacher, texts, use_prompts=use_prompts)
