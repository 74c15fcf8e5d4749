"""The ``prepare`` job: a source to a prepared set, or verify or export one."""

from __future__ import annotations

import logging
import os
import shutil
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recon_ray.cluster.workarounds.undocumented import is_submitted
from recon_ray.config.sections.common import ClusterSection
from recon_ray.config.sections.data import PrepareSection
from recon_ray.data.format.export import export_plain
from recon_ray.data.format.prepared import EPISODES_RECORD, PreparedSet
from recon_ray.data.format.schema import MANIFEST
from recon_ray.data.format.shards import ShardFiles
from recon_ray.data.prepare.build_set import prepare as build_set
from recon_ray.data.prepare.runners import run_processes
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.readers.archives import is_archive, unpack
from recon_ray.data.sources.base import Source
from recon_ray.data.sources.cards import CARDS, describe
from recon_ray.data.sources.create_source import create_source
from recon_ray.data.sources.custom import packed_folder
from recon_ray.data.sources.items import Items
from recon_ray.errors import ConfigError
from recon_ray.protocols import SOUND, ProtocolFlags
from recon_ray.storage import Place, is_uri
from recon_ray.tasks.config_checks import find_set
from recon_ray.tasks.prepare.config import PrepareConfig
from recon_ray.tasks.prepare.draw_episodes import draw_from_set, verify_episodes
from recon_ray.tasks.registry import Job, JobResult
from recon_ray.tasks.run import start_run

if TYPE_CHECKING:
    from recon_ray.data.prepare.runners import Run as Runner

logger = logging.getLogger(__name__)

#: Options of the section that belong to a source or to the execution, not to the rows.
NOT_ROW_OPTIONS = {
    "test_fraction", "table", "train_per_class", "test_per_class", "processes", "parallel",
    "append",
}  # fmt: skip
#: Default number of images a shape; other sources are not pre-trained with images.
VIEWS = {"synthetic": 4, "custom": 4, "shapenet55": 1}
#: Where an archive is unpacked in the output, which all nodes see; removed when the set is done.
UNPACKED = ".source"


def prepare(job: Job[PrepareConfig]) -> JobResult:
    """Convert a source to a prepared set, or verify or export one."""
    config = job.config
    if config.verify is not None:
        return _verify(config, config.verify)
    output = Place.of(config.output)
    if output.is_local and Path(output).is_file():
        raise ConfigError(f"output={config.output}: it is a file; give a folder")
    if config.export is not None:
        return _export(config, config.export)
    row_options(config.prepare, config.source, config.flags)  # raises if one is out of range
    source = config.input
    if config.source == "fewshot" and source is not None and (source / MANIFEST).is_file():
        return draw_from_set(config, source, dry_run=job.dry_run)
    if job.dry_run:
        return _dry_run(config)
    return _prepare(config)


def show_cards(name: str | None) -> str:
    """Describe a published data set, or all of them.

    Raises:
        ConfigError: If there is no such data set.
    """
    if name is None:
        return "\n\n".join(describe(card) for card in CARDS.values())
    if name not in CARDS:
        near = get_close_matches(name, CARDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(CARDS)}"
        raise ConfigError(f"--cards {name}: there is no such data set; {hint}")
    return describe(CARDS[name])


def _prepare(config: PrepareConfig) -> JobResult:
    if config.input is not None and is_archive(config.input):
        return _prepare_archive(config, config.input)
    source = make_source(config.source, config.input, config.prepare)
    run = start_run("prepare", config, label=config.source)
    if not (is_uri(config.output) or Path(config.output).is_absolute()) and is_submitted():
        logger.warning(
            "output=%s is relative: it lies in the submitted job's temporary folder; give an "
            "absolute path that all nodes see",
            config.output,
        )
    manifest = prepare_set(
        source, Place.of(config.output), config.prepare, config.cluster, flags=config.flags
    )
    counts = {name: split["rows"] for name, split in manifest["splits"].items()}
    return run.finish(
        {"samples": float(sum(counts.values())), "quarantined": float(manifest["quarantined"])},
        table=summary(manifest),
        selection="all samples that could be read",
        counts=counts,
        output=config.output,
        excluded=manifest["excluded"],
    )


def _prepare_archive(config: PrepareConfig, archive: Path) -> JobResult:
    """Unpack into the output and prepare from there; a restart finds it unpacked.

    Raises:
        ConfigError: If the output is no folder of a disk.
    """
    output = Place.of(config.output)
    if not output.is_local:
        raise ConfigError(
            f"input={archive}: an archive is unpacked in the output, which is an object store; "
            "unpack it and give the folder"
        )
    folder = unpack(archive, Path(output) / UNPACKED)
    # Published sets are looked for one folder down, and so are the files of a table.
    by_folders = config.source == "custom" and config.prepare.table is None
    root = packed_folder(folder) if by_folders else folder
    if root != folder:
        logger.info("%s: holds the folder %s, whose content is prepared", archive, root.name)
    try:
        return _prepare(config.model_copy(update={"input": root}))
    finally:
        if (output / MANIFEST).is_file():  # the set is done, or another one
            shutil.rmtree(folder)


def prepare_set(
    source: Source,
    output: Place,
    options: PrepareSection,
    cluster: ClusterSection | None = None,
    *,
    flags: ProtocolFlags = SOUND,
) -> dict[str, Any]:
    """Build or finish a prepared set, on Ray or with one process a core.

    Args:
        source: Lists and loads the samples.
        output: Folder or URI of the set.
        options: The section.
        cluster: The cluster that may be used; None for processes of this machine.
        flags: Published habits that are repeated.

    Returns:
        The manifest.

    Raises:
        ConfigError: If an option is out of range, or the cluster cannot be joined.
        DataError: See :func:`recon_ray.data.prepare.build_set.prepare`.
    """
    run = _runner(options, cluster)
    return build_set(
        source, output, row_options(options, source.name, flags), run=run, append=options.append
    )


def _runner(options: PrepareSection, cluster: ClusterSection | None) -> Runner:
    if cluster is None or options.parallel == "local":
        return run_processes(options.processes)
    joins = cluster.address is not None or bool(os.environ.get("RAY_ADDRESS"))
    if options.parallel == "auto" and not joins:
        return run_processes(options.processes)
    from recon_ray.cluster.build_pool import run_on_ray  # importing Ray takes seconds

    return run_on_ray(cluster, options.processes or None)


def row_options(
    options: PrepareSection, source: str, flags: ProtocolFlags = SOUND
) -> PrepareOptions:
    """Return the options on which the rows depend.

    Raises:
        ConfigError: If one is out of range.
    """
    chosen = options.model_dump(exclude=NOT_ROW_OPTIONS)
    if chosen["views"] is None:
        chosen["views"] = VIEWS.get(source, 0)
    published = CARDS[source].picture_side if source in CARDS else None
    if published is not None and flags.published_pictures:
        chosen["image_fit"] = "stretch"
        chosen["image_size"] = chosen["image_size"] or published
    if chosen["image_size"] is None:
        del chosen["image_size"]
    return PrepareOptions(**chosen)


def make_source(source: str, folder: Path | None, options: PrepareSection) -> Source:
    """Make a source by its name.

    Raises:
        ConfigError: If its folder is missing.
    """
    absolute = None if folder is None else folder.absolute()  # other processes load the samples
    return create_source(source, absolute, options.model_dump())


def summary(manifest: dict[str, Any]) -> str:
    """Return a short table of a manifest."""
    card = manifest.get("card") or {}
    published = card.get("counts", {})
    lines = [f"{'split':10}{'samples':>10}{'published':>11}{'shards':>8}{'MB':>10}"]
    for name, split in manifest["splits"].items():
        size, known = split["bytes"] / 1e6, published.get(name, "-")
        lines.append(
            f"{name:10}{split['rows']:>10}{known:>11}{split['num_shards']:>8}{size:>10.1f}"
        )
    lines.append(
        f"{len(manifest['classes'])} classes, {manifest['num_points']} points a shape, "
        f"{manifest['quarantined']} unreadable and {manifest.get('excluded', 0)} left out by rule "
        "(_quarantine.jsonl)"
    )
    if card:
        lines.append(f"data set: {card['title']} ({card['name']}); terms: {card['license']}")
    return "\n".join(lines)


def counted(prepared: PreparedSet) -> dict[str, Any]:
    """Return the manifest of a set of any version, with the shards and bytes of its splits."""
    splits = {}
    for name, split in prepared.splits.items():
        files = [f for f in (split.geometry, split.views, split.features) if f]
        size = sum(f.total_bytes for f in files if isinstance(f, ShardFiles))
        counts = {"num_shards": len(split.shard_rows), "bytes": size}
        splits[name] = {**prepared.manifest["splits"][name], **counts}
    return {**prepared.manifest, "splits": splits}


def _verify(config: PrepareConfig, path: str) -> JobResult:
    if (Place.of(path) / EPISODES_RECORD).is_file():
        return verify_episodes(config, path)
    prepared = find_set("verify", path)
    prepared.verify()
    run = start_run("prepare", config, label="verify")
    rows = {name: split.rows for name, split in prepared.splits.items()}
    card = CARDS.get((prepared.manifest.get("card") or {}).get("name", ""))
    found = f"{path}: every shard has the recorded hash, rows and schema"
    parts = [found, summary(counted(prepared)), *([describe(card)] if card else [])]
    return run.finish(
        {"samples": float(sum(rows.values()))},
        table="\n".join(parts),
        selection="all shards",
        counts=rows,
    )


def _export(config: PrepareConfig, path: str) -> JobResult:
    prepared = find_set("export", path)
    run = start_run("prepare", config, label="export")
    record = export_plain(prepared, Place.of(config.output))
    size = sum(file["bytes"] for file in record["files"]) / 1e6
    return run.finish(
        {"samples": float(sum(record["rows"].values()))},
        table=f"{config.output}: {len(record['files'])} files, {size:.1f} MB, as plain fixed-size "
        "lists, read back and compared",
        selection="all shards",
        counts=record["rows"],
        output=config.output,
    )


def _dry_run(config: PrepareConfig) -> JobResult:
    if config.input is not None and is_archive(config.input):
        return JobResult(f"dry run: {config.input} would be unpacked; nothing is written")
    source = make_source(config.source, config.input, config.prepare)
    listing = source.scan()
    items = Items.of(listing.items)
    counts = {split: len(rows) for split, rows in items.splits().items()}
    lines = [f"dry run: {len(items)} samples found, nothing is written"]
    lines += [f"{name:10}{counts[name]:>10}" for name in sorted(counts)]
    if listing.excluded:
        lines.append(f"{len(listing.excluded)} left out by rule")
    return JobResult("\n".join(lines))
