"""The driver of ``jobs/prepare.py``."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from recon_ray.cli import Job, JobResult
from recon_ray.config.schema import PrepareConfig, PrepareSection
from recon_ray.data.prepare import PrepareOptions, Source, run_processes
from recon_ray.data.prepare import prepare as build_set
from recon_ray.data.sources.custom import CustomSource
from recon_ray.data.sources.synthetic import SyntheticSource
from recon_ray.errors import ConfigError
from recon_ray.programs.checks import find_set
from recon_ray.programs.run import start_run

logger = logging.getLogger(__name__)

#: Options of the section that belong to a source or to the execution, not to the rows.
NOT_ROW_OPTIONS = {"test_fraction", "table", "train_per_class", "test_per_class", "processes"}


def prepare(job: Job[PrepareConfig]) -> JobResult:
    """Convert a source to a prepared set, or verify one."""
    config = job.config
    if config.verify is not None:
        return _verify(config, config.verify)
    if job.dry_run:
        return _dry_run(config)
    source = make_source(config.source, config.input, config.prepare)
    row_options(config.prepare)  # refuses what is out of range before anything is written
    if config.output.exists() and not config.output.is_dir():
        raise ConfigError(f"output={config.output}: it is a file; give a folder")
    run = start_run("prepare", config, label=config.source)
    manifest = prepare_set(source, config.output, config.prepare)
    metrics = {
        "samples": float(sum(split["rows"] for split in manifest["splits"].values())),
        "quarantined": float(manifest["quarantined"]),
    }
    return run.finish(
        metrics,
        table=summary(manifest),
        selection="all samples that could be read",
        counts={name: split["rows"] for name, split in manifest["splits"].items()},
        output=str(config.output),
    )


def prepare_set(source: Source, output: Path, options: PrepareSection) -> dict[str, Any]:
    """Build or finish a prepared set with one process a core.

    Returns:
        The manifest.

    Raises:
        ConfigError: If an option is out of range.
        DataError: See :func:`recon_ray.data.prepare.prepare`.
    """
    processes = options.processes if options.processes is not None else os.cpu_count() or 1
    return build_set(source, output, row_options(options), run=run_processes(processes))


def row_options(options: PrepareSection) -> PrepareOptions:
    """Options that decide the rows."""
    return PrepareOptions(**options.model_dump(exclude=NOT_ROW_OPTIONS))


def make_source(source: str, folder: Path | None, options: PrepareSection) -> Source:
    """Make the source that is named.

    Raises:
        ConfigError: If its folder is missing.
    """
    if source == "synthetic":
        return SyntheticSource(
            seed=options.seed,
            train_per_class=options.train_per_class,
            test_per_class=options.test_per_class,
        )
    if folder is None or not folder.is_dir():
        raise ConfigError(f"input={folder}: no such folder; give the folder that holds the shapes")
    table = None if options.table is None else Path(options.table)
    if table is not None and not table.is_file():
        raise ConfigError(f"prepare.table={table}: no such file; give a CSV or Parquet table")
    return CustomSource(folder, table=table, test_fraction=options.test_fraction, seed=options.seed)


def summary(manifest: dict[str, Any]) -> str:
    """Short table of a manifest."""
    lines = [f"{'split':10}{'samples':>10}{'shards':>8}{'MB':>10}"]
    for name, split in manifest["splits"].items():
        files = [shard[kind] for shard in split["shards"] for kind in ("geometry", "views")]
        size = sum(file["bytes"] for file in files if file is not None) / 1e6
        lines.append(f"{name:10}{split['rows']:>10}{len(split['shards']):>8}{size:>10.1f}")
    lines.append(
        f"{len(manifest['classes'])} classes, {manifest['num_points']} points a shape, "
        f"{manifest['quarantined']} left out (_quarantine.jsonl)"
    )
    return "\n".join(lines)


def _verify(config: PrepareConfig, path: Path) -> JobResult:
    prepared = find_set("verify", path)
    prepared.verify()
    run = start_run("prepare", config, label="verify")
    rows = {name: split.rows for name, split in prepared.splits.items()}
    return run.finish(
        {"samples": float(sum(rows.values()))},
        table=f"{path}: every shard has the recorded hash, rows and schema\n"
        + summary(prepared.manifest),
        selection="all shards",
        counts=rows,
    )


def _dry_run(config: PrepareConfig) -> JobResult:
    source = make_source(config.source, config.input, config.prepare)
    items = source.scan().items
    lines = [f"dry run: {len(items)} samples found, nothing is written"]
    splits = sorted({item.split for item in items})
    lines += [f"{name:10}{sum(item.split == name for item in items):>10}" for name in splits]
    return JobResult("\n".join(lines))
