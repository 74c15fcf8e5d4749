"""The driver of ``jobs/cache_teachers.py``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from recon_ray.cluster.encode_pool import encode_here, encode_on_ray, run_in_worker
from recon_ray.cluster.placement import WorkerPlan, plan_workers
from recon_ray.cluster.session import ray_session
from recon_ray.config.sections.training import TextTeacherSection
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.errors import ConfigError, DataError
from recon_ray.machine import cpu_count
from recon_ray.tasks.cache_teachers.config import CacheTeachersConfig
from recon_ray.tasks.cache_teachers.workers import TeacherWorker
from recon_ray.tasks.config_checks import check_here, check_images, check_texts, find_set, texts_of
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import start_run
from recon_ray.tasks.teacher_features import (
    image_identity,
    image_transform,
    make_image_teacher,
    make_text_teacher,
)
from recon_ray.teachers.bank import text_bank
from recon_ray.teachers.cache import (
    CACHES,
    Identity,
    TeacherCache,
    cache_key,
    find_caches,
    text_identity,
)
from recon_ray.teachers.cache_shards import (
    CachePlan,
    EncodeTask,
    build_bank,
    build_cache,
    encode_batch,
    make_cache_plan,
    views_per_sample,
)
from recon_ray.teachers.protocol import ImageTeacher

logger = logging.getLogger(__name__)


def cache_teachers(job: Job[CacheTeachersConfig]) -> JobResult:
    """Encode the pictures and texts of a prepared set, and write ``result.json``."""
    config = job.config
    prepared = find_set("data.path", Path(config.data.path))
    _check(config, prepared)
    texts = texts_of(prepared, config.data.text)
    if config.teacher.text.name is not None:
        check_texts(prepared, texts)
    if config.data.verify:
        prepared.verify_hashes()
    image = None if config.teacher.image.name is None else _plan_images(config, prepared)
    if job.dry_run:
        return _dry_run(config, image, texts)
    check_here(config)
    run = start_run("cache_teachers", config, label=_label(config))
    started = time.monotonic()
    todo = 0 if image is None else sum(task.images for task in image.plan.unfinished())
    with _workers(config) as plan:
        folders = [] if image is None else [_encode_images(config, image, plan)]
        folders += _encode_texts(config, prepared, texts, plan)
    rate = todo / max(time.monotonic() - started, 1e-9)
    images = 0 if image is None else sum(task.images for task in image.plan.all_tasks)
    metrics = {"images": float(images), "images_encoded": float(todo), "images_per_second": rate}
    return run.finish(
        metrics,
        table=_summary(folders),
        selection="all samples of the splits",
        counts={"texts": 0 if config.teacher.text.name is None else len(texts), "images": images},
        caches=[str(folder) for folder in folders],
    )


def _label(config: CacheTeachersConfig) -> str:
    name = config.teacher.image.name or config.teacher.text.name or ""
    return name.partition(":")[0]


def _check(config: CacheTeachersConfig, prepared: PreparedSet) -> None:
    if config.teacher.image.name is None:
        return
    check_images(prepared)
    for name in config.cache.splits:
        if name not in prepared.splits:
            raise ConfigError(
                f"cache.splits: {prepared.path} has no split {name!r}; choose of "
                f"{', '.join(prepared.splits)}"
            )


@dataclass(frozen=True)
class _Images:
    """The image teacher's part of the job; ``make`` makes it anew, in another process."""

    teacher: ImageTeacher
    make: Callable[[], ImageTeacher]
    plan: CachePlan


def _plan_images(config: CacheTeachersConfig, prepared: PreparedSet) -> _Images:
    """Make the teacher once, to know its identity, and plan the shards of its cache."""
    options, cache = config.teacher.image, config.cache
    teacher = make_image_teacher(options, precision=cache.precision)
    clean = options.augment == "none"
    copies = views_per_sample(prepared.splits[cache.splits[0]]) if clean else cache.copies
    choices = {
        "seed": config.run.seed,
        "copies": copies,
        "precision": cache.precision,
        "batch_size": cache.batch_size,
    }
    identity = {**image_identity(teacher, options, prepared), "choices": choices}
    plan = make_cache_plan(prepared, identity, cache.splits, image_transform(teacher, options))
    pinned = partial(
        make_image_teacher,
        options,
        precision=cache.precision,
        sha256=teacher.identity["sha256"],  # a node with other weights is refused
    )
    return _Images(teacher, pinned, plan)


@contextmanager
def _workers(config: CacheTeachersConfig) -> Iterator[WorkerPlan | None]:
    """The workers of the job; None in this process."""
    if config.cluster.workers == 0:
        yield None
        return
    with ray_session(config.cluster):
        yield plan_workers(
            config.cluster, reads_during_training=False, device=config.runtime.device
        )


def _encode_images(config: CacheTeachersConfig, images: _Images, plan: WorkerPlan | None) -> Path:
    worker = TeacherWorker(
        images.make if plan is not None else lambda: images.teacher,
        threads=config.runtime.threads or 1,
        decoders=cpu_count() if plan is None else max(1, int(config.cluster.cpus_per_worker)),
    )
    run = (
        encode_here(worker, on_gpu=_uses_gpu(config))
        if plan is None
        else encode_on_ray(worker, config.cluster, plan)
    )
    build_cache(images.plan, run, dim=images.teacher.dim)
    return images.plan.root


def _encode_texts(
    config: CacheTeachersConfig, prepared: PreparedSet, texts: list[str], plan: WorkerPlan | None
) -> list[Path]:
    """Write the text bank, unless it is there already; nothing without a text teacher."""
    options, use_prompts = config.teacher.text, config.data.text == "category"
    teacher = make_text_teacher(options)
    if teacher is None:
        return []
    identity = text_identity(teacher.identity, texts, use_prompts=use_prompts)
    root = prepared.path / CACHES / cache_key(identity)
    if _holds_bank(prepared, identity, texts):
        logger.info("text bank %s: it is there already", root)
        return [root]
    if plan is None:
        teacher = teacher.to("cuda" if _uses_gpu(config) else "cpu")
        bank = text_bank(teacher, texts, use_prompts=use_prompts)
    else:
        pinned = options.model_copy(update={"sha256": teacher.identity["sha256"]})
        bank = run_in_worker(partial(_bank, pinned, texts, use_prompts), plan)
    build_bank(root, identity, texts, bank)
    logger.info("text bank %s: %d texts in %d prompts", root, len(texts), bank.shape[1])
    return [root]


def _bank(options: TextTeacherSection, texts: list[str], use_prompts: bool, device: str) -> Tensor:
    teacher = make_text_teacher(options)
    assert teacher is not None
    return text_bank(teacher.to(device), texts, use_prompts=use_prompts)


def _holds_bank(prepared: PreparedSet, identity: Identity, texts: list[str]) -> bool:
    found, _ = find_caches(prepared, identity)
    try:
        return bool(found) and found[0].text_bank(texts) is not None
    except DataError as error:
        logger.warning("%s: it is written anew", error)
        return False


def _uses_gpu(config: CacheTeachersConfig) -> bool:
    return config.runtime.device != "cpu" and torch.cuda.is_available()


def _summary(folders: list[Path]) -> str:
    lines = [f"{'cache':50}{'features':>16}{'MB':>10}"]
    for folder in folders:
        manifest = TeacherCache.open(folder).manifest
        size = sum(path.stat().st_size for path in folder.rglob("*.parquet")) / 1e6
        shape = " x ".join(str(number) for number in manifest["shape"])
        lines.append(f"{folder.name:50}{shape:>16}{size:>10.1f}")
    lines.append("train with teacher.image.mode=cached; text banks are found by themselves")
    return "\n".join(lines)


def _dry_run(config: CacheTeachersConfig, images: _Images | None, texts: list[str]) -> JobResult:
    """Encode one batch in a throw-away folder and say how long the whole would take."""
    lines = ["dry run: one batch was encoded, nothing is kept"]
    if config.teacher.text.name is not None:
        lines.append(f"{'texts':28}{len(texts):>20,}")
    todo = [] if images is None else images.plan.unfinished()
    if images is not None and todo:
        seconds = _seconds_of_a_batch(config, images, todo[0])
        count = sum(task.images for task in todo)
        rate = config.cache.batch_size / seconds
        lines += [
            f"{'pictures to encode':28}{count:>20,}",
            f"{'features':28}{f'{todo[0].copies} x {images.teacher.dim}':>20}",
            f"{'megabytes':28}{count * images.teacher.dim * 2 / 1e6:>20,.1f}",
            f"{'pictures a second, a worker':28}{rate:>20.1f}",
            f"{'minutes with one worker':28}{count / rate / 60:>20.1f}",
        ]
    return JobResult("\n".join(lines))


def _seconds_of_a_batch(config: CacheTeachersConfig, images: _Images, task: EncodeTask) -> float:
    torch.set_num_threads(config.runtime.threads or 1)
    teacher = images.teacher.to("cuda" if _uses_gpu(config) else "cpu")
    started = time.monotonic()
    encode_batch(task, teacher)
    return time.monotonic() - started
