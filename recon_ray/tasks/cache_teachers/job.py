"""Main function of ``jobs/cache_teachers.py``: features of the teachers beside a prepared set."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from recon_ray.cluster.encode_pool import EncodePool
from recon_ray.config.sections.training import TextTeacherSection
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.storage import Place
from recon_ray.tasks.cache_teachers.cache_shards import (
    CachePlan,
    ImageTask,
    TeacherWorker,
    build_cache,
    make_cache_plan,
    make_caption_plan,
    make_text_task,
    views_per_sample,
)
from recon_ray.tasks.cache_teachers.config import CacheTeachersConfig
from recon_ray.tasks.config_checks import (
    check_captions,
    check_here,
    check_images,
    check_split,
    check_texts,
    find_set,
    has_many_captions,
    texts_of,
)
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import start_run
from recon_ray.tasks.shard_encoding import encode_shards, unfinished
from recon_ray.tasks.teacher_features import (
    image_identity,
    image_transform,
    make_image_teacher,
    make_text_teacher,
)
from recon_ray.teachers.cache import TeacherCache, captions_identity
from recon_ray.teachers.protocol import FrozenTeacher, ImageTeacher, TextTeacher


def cache_teachers(job: Job[CacheTeachersConfig]) -> JobResult:
    """Encode the pictures and texts of a prepared set, and write ``result.json``."""
    config = job.config
    prepared = find_set("data.path", config.data.path)
    texts: list[str] = []
    names = config.teacher
    if names.image.name is not None:
        _check_pictures(config, prepared)
    by_shape = (
        names.text.name is not None
        and config.data.text == "caption"
        and has_many_captions(prepared)
    )
    shapes = 0
    if by_shape:
        for name in config.cache.splits:
            check_split(prepared, "cache.splits", name)
            shapes += prepared.splits[name].rows
    elif names.text.name is not None:
        texts = texts_of(prepared, config.data.text)
        if config.data.text == "caption":
            splits = [name for name in prepared.splits if name in config.cache.splits]
            way = "set data.text=category"
            check_captions(prepared, splits, "data.text=caption", or_else=way)
        check_texts(prepared, texts)
    prepared = prepared.checked(config.data.verify)
    images = None if names.image.name is None else _plan_images(config, prepared)
    if job.dry_run:
        return _dry_run(config, images, len(texts) or shapes)
    check_here(config)
    label = (names.image.name or names.text.name or "").partition(":")[0]
    run = start_run("cache_teachers", config, label=label)
    started, folders, total, encoded = time.monotonic(), [], 0, 0
    with EncodePool(config.cluster, config.runtime.device) as pool:
        if images is not None:
            total = sum(task.units for task in images[1].tasks)
            encoded = _encode_images(config, *images, pool)
            folders.append(images[1].root)
        if texts:
            folders.append(_encode_texts(config, prepared, texts, pool))
        if by_shape:
            folders.append(_encode_captions(config, prepared, pool))
    rate = encoded / max(time.monotonic() - started, 1e-9)
    return run.finish(
        {"images": float(total), "images_encoded": float(encoded), "images_per_second": rate},
        table=_summary(folders),
        selection="all samples of the splits",
        counts={"texts": len(texts) or shapes, "images": total},
        caches=[str(folder) for folder in folders],
    )


def _check_pictures(config: CacheTeachersConfig, prepared: PreparedSet) -> None:
    check_images(prepared)
    for name in config.cache.splits:
        check_split(prepared, "cache.splits", name)


def _plan_images(
    config: CacheTeachersConfig, prepared: PreparedSet
) -> tuple[ImageTeacher, CachePlan[ImageTask]]:
    """Make the teacher, for its identity, and plan the shards of its cache."""
    options, cache = config.teacher.image, config.cache
    teacher = make_image_teacher(options, precision=cache.precision)
    is_clean = options.augment == "none"
    choices = {
        "seed": config.run.seed,
        "copies": views_per_sample(prepared.splits[cache.splits[0]]) if is_clean else cache.copies,
        "precision": cache.precision,
        "batch_size": cache.batch_size,
    }
    identity = {**image_identity(teacher, options, prepared), "choices": choices}
    transform = image_transform(teacher, options)
    return teacher, make_cache_plan(prepared, identity, cache.splits, transform)


def _encode_images(
    config: CacheTeachersConfig, teacher: ImageTeacher, plan: CachePlan[ImageTask], pool: EncodePool
) -> int:
    """Finish the cache of images and return the number of pictures that were encoded."""
    again = partial(
        make_image_teacher,
        config.teacher.image,
        precision=config.cache.precision,
        sha256=teacher.identity["sha256"],  # a node with other weights is refused
    )
    worker = partial(_worker, pool, teacher, again, config.runtime.threads or 1)
    return sum(task.units for task in build_cache(plan, pool, worker, dim=teacher.dim))


def _encode_captions(config: CacheTeachersConfig, prepared: PreparedSet, pool: EncodePool) -> Place:
    """Finish the features of the captions, one a shape, and return their folder."""
    options = config.teacher.text
    teacher = make_text_teacher(options)
    choices = {"copies": 1, "batch_size": config.cache.batch_size}
    identity = {**captions_identity(teacher.identity, prepared), "choices": choices}
    plan = make_caption_plan(prepared, identity, config.cache.splits)
    again = partial(make_text_teacher, _pinned(options, teacher))
    worker = partial(_worker, pool, teacher, again, config.runtime.threads)
    build_cache(plan, pool, worker, dim=teacher.dim, unit="captions")
    return plan.root


def _pinned(options: TextTeacherSection, teacher: TextTeacher) -> TextTeacherSection:
    """Return options with which a node with other weights is refused."""
    return options.model_copy(update={"sha256": teacher.identity["sha256"]})


def _encode_texts(
    config: CacheTeachersConfig, prepared: PreparedSet, texts: list[str], pool: EncodePool
) -> Place:
    """Write the text bank, unless it is there already, and return its folder."""
    options, use_prompts = config.teacher.text, config.data.text == "category"
    teacher = make_text_teacher(options)
    task = make_text_task(prepared.path, teacher.identity, texts, use_prompts=use_prompts)
    again, threads = partial(make_text_teacher, _pinned(options, teacher)), config.runtime.threads
    worker = partial(_worker, pool, teacher, again, threads)
    encode_shards("cache_teachers", [task], pool, worker, unit="texts")
    return Place(task.root)


def _worker(
    pool: EncodePool,
    teacher: FrozenTeacher,
    again: Callable[[], FrozenTeacher],
    threads: int | None,
) -> TeacherWorker:
    """Return the worker of a teacher, which is made again in other processes."""
    make = (lambda: teacher) if pool.is_local else again
    threads = threads or pool.plan.threads_per_worker
    return TeacherWorker(make, threads, max(1, int(pool.plan.cpus_per_worker)))


def _summary(folders: list[Place]) -> str:
    lines = [f"{'cache':50}{'features':>16}{'MB':>10}"]
    for folder in folders:
        manifest = TeacherCache.open(folder).manifest
        sizes = {name: size for name, size in folder.files().items() if name.endswith(".parquet")}
        size = sum(sizes.values()) / 1e6
        shape = " x ".join(str(number) for number in manifest["shape"])
        lines.append(f"{folder.name:50}{shape:>16}{size:>10.1f}")
    lines.append("train with teacher.image.mode=cached; text banks are found by themselves")
    return "\n".join(lines)


def _dry_run(
    config: CacheTeachersConfig,
    images: tuple[ImageTeacher, CachePlan[ImageTask]] | None,
    texts: int,
) -> JobResult:
    """Encode one batch of pictures and estimate the time of all."""
    lines = ["dry run: one batch was encoded, nothing is kept"]
    if texts:
        lines.append(f"{'texts':28}{texts:>20,}")
    todo = unfinished(images[1].tasks) if images is not None else []
    if images is not None and todo:
        torch.set_num_threads(config.runtime.threads or 1)
        on_gpu = config.runtime.device != "cpu" and torch.cuda.is_available()
        teacher = images[0].to("cuda" if on_gpu else "cpu")
        started = time.monotonic()
        teacher.encode(todo[0].first_batch()).cpu()
        rate = config.cache.batch_size / (time.monotonic() - started)
        count = sum(task.units for task in todo)
        lines += [
            f"{'pictures to encode':28}{count:>20,}",
            f"{'features':28}{f'{todo[0].copies} x {teacher.dim}':>20}",
            f"{'megabytes':28}{count * teacher.dim * 2 / 1e6:>20,.1f}",
            f"{'pictures a second, a worker':28}{rate:>20.1f}",
            f"{'minutes with one worker':28}{count / rate / 60:>20.1f}",
        ]
    return JobResult("\n".join(lines))
