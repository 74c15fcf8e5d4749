"""From the configuration to the teachers: run online, cached, or shipped by the source."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recon_ray.config.sections.training import ImageEncoderSection, TextTeacherSection
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.stored_features import StoredFeatures, joined_features, source_features
from recon_ray.data.loading.images import IMAGES_VERSION, ImageTransform
from recon_ray.errors import ConfigError, TeacherError
from recon_ray.tasks.cache_teachers.config import CacheSection, CacheTeachersConfig
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.teachers.cache import (
    Identity,
    StoredBank,
    TeacherCache,
    difference,
    find_caches,
    text_identity,
    views_identity,
)
from recon_ray.teachers.create import create_image_teacher, create_text_teacher
from recon_ray.teachers.protocol import ImageTeacher, Precision, TextTeacher

logger = logging.getLogger(__name__)

#: Name of the teacher whose features came with the data set.
SOURCE = "source"


@dataclass(frozen=True)
class StoredTeachers:
    """What need not be computed in the training; picklable.

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
        """What is read beside the training rows."""
        return tuple(one for one in (self.image, self.text) if one is not None)


def stored_teachers(
    config: PretrainConfig, prepared: PreparedSet, texts: Sequence[str]
) -> StoredTeachers:
    """Find what is there already of the configured teachers.

    Args:
        config: The job's configuration.
        prepared: The prepared set.
        texts: What a text teacher reads.

    Raises:
        ConfigError: If features are asked for that are not there, or are another teacher's.
        DataError: If a cache is damaged.
        TeacherError: If the teacher that would tell whether a cache fits cannot be had.
    """
    options, verify = config.teacher, config.data.verify
    image = text = None
    splits = [split.name for split in prepared.join(config.data.train_splits).members]
    if options.image.name == SOURCE:
        image = joined_features([source_features(prepared, "image_features", s) for s in splits])
    elif options.image.name is not None and options.image.mode == "cached":
        cache = _image_cache(config, prepared, splits)
        image = joined_features([cache.image_features(prepared, s, verify=verify) for s in splits])
    if options.text.name == SOURCE:
        text = joined_features([source_features(prepared, "text_features", s) for s in splits])
    bank = None
    if options.text.name not in (None, SOURCE):
        use_prompts = config.data.text == "category"
        bank = stored_bank(options.text, prepared, texts, use_prompts=use_prompts)
    return StoredTeachers(image, text, bank)


def _image_cache(
    config: PretrainConfig, prepared: PreparedSet, splits: Sequence[str]
) -> TeacherCache:
    options = config.teacher.image
    wanted = _wanted_images(options, prepared)
    if options.cache is not None:
        return _named_cache(config, Path(options.cache), wanted, splits)
    found, reason = find_caches(prepared, wanted)
    fitting = [cache for cache in found if _absent(cache, splits) is None]
    if not fitting:
        if found:
            reason = f"{found[-1].path.name}: {_absent(found[-1], splits)}"
        nearest = f" (the nearest is {reason})" if reason else ""
        raise ConfigError(
            f"teacher.image.mode=cached: {prepared.path} has no features of {options.name} as "
            f"configured{nearest}; make them: {cache_command(config)}"
        )
    seed = config.run.seed
    fitting.sort(key=lambda cache: (_choice(cache, "seed") == seed, _choice(cache, "copies")))
    return fitting[-1]


def _absent(cache: TeacherCache, splits: Sequence[str]) -> str | None:
    """Say in words which of the splits a cache of images lacks first; None if it has all."""
    has = cache.manifest["splits"]
    lacks = next((split for split in splits if split not in has), None)
    return None if lacks is None else f"it holds {', '.join(has) or 'no split'}, not {lacks!r}"


def _named_cache(
    config: PretrainConfig, path: Path, wanted: Identity, splits: Sequence[str]
) -> TeacherCache:
    if not path.is_dir():
        raise ConfigError(
            f"teacher.image.cache={path}: no such folder; leave it out, or make the cache: "
            f"{cache_command(config)}"
        )
    cache = TeacherCache.open(path)
    wrong = difference(cache.identity, wanted) or _absent(cache, splits)
    if wrong is not None:
        raise ConfigError(
            f"teacher.image.cache={path}: it does not fit ({wrong}); leave it out, change the "
            f"option, or make another: {cache_command(config)}"
        )
    return cache


def _choice(cache: TeacherCache, name: str) -> int:
    return int(cache.identity["choices"][name])


def _wanted_images(options: ImageEncoderSection, prepared: PreparedSet) -> Identity:
    """What a cache must be of; weights that are pinned need not be there to know their hash."""
    if options.sha256 is None:
        return image_identity(make_image_teacher(options), options, prepared)
    return {
        "kind": "image",
        "teacher": {"sha256": options.sha256.strip().lower()},
        "preprocessing": _preprocessing(options),
        "set": views_identity(prepared),
    }


def image_identity(
    teacher: ImageTeacher, options: ImageEncoderSection, prepared: PreparedSet
) -> dict[str, Any]:
    """Name the image features of a set: teacher, preprocessing and pictures."""
    constants = {
        "image_size": teacher.image_size,
        "mean": list(teacher.mean),
        "std": list(teacher.std),
    }
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
    """Find the text bank of the set that fits; None if it has to be computed.

    Args:
        options: The text teacher, which has a name.
        prepared: The prepared set.
        texts: What the bank holds.
        use_prompts: Whether each is put into the 60 prompts.

    Raises:
        TeacherError: If the teacher that would tell whether a bank fits cannot be had.
    """
    if not find_caches(prepared, {"kind": "text"})[0]:
        return None
    pin = options.sha256
    if pin is None:
        teacher = make_text_teacher(options)
        assert teacher is not None
        wanted = text_identity(teacher.identity, texts, use_prompts=use_prompts)
    else:
        wanted = text_identity({"sha256": pin.strip().lower()}, texts, use_prompts=use_prompts)
    fitting, _ = find_caches(prepared, wanted)
    return StoredBank(fitting[0]) if fitting else None


def stored_images(
    options: ImageEncoderSection,
    prepared: PreparedSet,
    splits: Sequence[str],
    *,
    verify: bool,
) -> StoredFeatures | None:
    """Find the image features of splits that the source shipped, or that a cache of them holds.

    Args:
        options: The image teacher, which has a name.
        prepared: The prepared set.
        splits: Names of its splits.
        verify: Compare the SHA-256 of a cache's files with its manifest.

    Returns:
        None if they have to be computed.

    Raises:
        ConfigError: If the source's are asked for and there are none.
        DataError: If a cache is damaged.
        TeacherError: If the teacher that would tell whether a cache fits cannot be had.
    """
    if options.name == SOURCE:
        return joined_features([source_features(prepared, "image_features", s) for s in splits])
    if not find_caches(prepared, {"kind": "image"})[0]:
        return None
    found, _ = find_caches(prepared, _wanted_images(options, prepared))
    fitting = [cache for cache in found if _absent(cache, splits) is None]
    if not fitting:
        return None
    parts = [fitting[-1].image_features(prepared, split, verify=verify) for split in splits]
    return joined_features(parts)


def cache_command(config: PretrainConfig) -> str:
    """The command that makes the cache which a configuration asks for."""
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
    """How pictures are brought to a teacher."""
    return ImageTransform(kind=options.augment, image_size=teacher.image_size, bgr=options.bgr)


def make_image_teacher(
    options: ImageEncoderSection, *, precision: Precision = "fp32", sha256: str | None = None
) -> ImageTeacher:
    """Make the configured image teacher on the CPU.

    Args:
        options: Its section, with a name.
        precision: What the forward pass computes in.
        sha256: Hash that the weights must have besides the configured one.

    Raises:
        TeacherError: If it cannot be had; the message names the section.
    """
    assert options.name is not None
    with _naming("teacher.image"):
        return create_image_teacher(
            options.name,
            sha256=sha256 or options.sha256,
            statistics=options.statistics,
            precision=precision,
        )


def make_text_teacher(options: TextTeacherSection) -> TextTeacher | None:
    """Make the configured text teacher on the CPU; None where there is none.

    Raises:
        TeacherError: If it cannot be had; the message names the section.
    """
    if options.name is None:
        return None
    with _naming("teacher.text"):
        return create_text_teacher(options.name, sha256=options.sha256)


@contextmanager
def _naming(section: str) -> Iterator[None]:
    """Put the section of the options at the head of a teacher's error."""
    try:
        yield
    except TeacherError as error:
        raise type(error)(f"{section}: {error}") from error
