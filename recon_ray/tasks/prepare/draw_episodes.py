"""Few-shot episodes drawn from a prepared set (``source=fewshot``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from recon_ray.data.fewshot.draw import draw_episodes
from recon_ray.data.format.files import read_json, write_json, write_table
from recon_ray.data.format.prepared import EPISODES_RECORD, read_episodes
from recon_ray.data.format.schema import MANIFEST
from recon_ray.errors import ConfigError, DataError
from recon_ray.storage import Place
from recon_ray.tasks.config_checks import find_set
from recon_ray.tasks.prepare.config import PrepareConfig
from recon_ray.tasks.registry import JobResult
from recon_ray.tasks.run import start_run

DRAWN = "drawn from a prepared set"


def draw_from_set(config: PrepareConfig, path: Path, *, dry_run: bool = False) -> JobResult:
    """Draw the episodes of all ways, shots and folds and write them to the output.

    Args:
        config: The configuration; ``prepare.seed`` is the seed of the draw.
        path: The prepared set, usually ModelNet40; its training shapes train, its test shapes test.
        dry_run: Draw, and write nothing.

    Raises:
        ConfigError: If the output holds something else.
        DataError: If the set is damaged, or has too few classes or shapes.
    """
    prepared = find_set("input", path)
    rows = [prepared.read(name, ["object_id", "label"]).to_pydict() for name in ("train", "test")]
    columns = [split[name] for split in rows for name in ("object_id", "label")]
    try:
        table = draw_episodes(*columns, seed=config.prepare.seed)
    except DataError as error:
        raise DataError(f"{prepared.path}: {error}; give a larger set as input") from error
    counts = {name: table["split"].to_pylist().count(name) for name in ("train", "test")}
    record = {
        "source": DRAWN,
        "set": prepared.manifest["source"],
        "manifest_sha256": prepared.manifest_hash,
        "seed": config.prepare.seed,
        "rows": len(table),
    }
    shown = (
        f"{_count(table)} episodes of {prepared.path}: {counts['train']} training rows, "
        f"{counts['test']} test rows"
    )
    if dry_run:
        return JobResult(f"dry run, nothing is written: {shown}")
    output = Place.of(config.output)
    _refuse_other(output, record)
    run = start_run("prepare", config, label="fewshot")
    entry = write_table(output, "episodes.parquet", table)
    write_json(output / EPISODES_RECORD, {**record, **entry})
    return run.finish(
        {"episodes": float(_count(table))},
        table=shown,
        selection=f"drawn with prepare.seed={config.prepare.seed}",
        counts=counts,
        output=config.output,
    )


def verify_episodes(config: PrepareConfig, path: str) -> JobResult:
    """Check a folder that holds only episodes."""
    table = read_episodes(path)
    run = start_run("prepare", config, label="verify")
    return run.finish(
        {"episodes": float(_count(table))},
        table=f"{path}: {_count(table)} episodes, with the recorded hash",
        selection="all episodes",
        counts={"rows": len(table)},
    )


def _count(table: pa.Table) -> int:
    return table.group_by(["way", "shot", "fold"]).aggregate([]).num_rows


def _refuse_other(output: Place, record: dict[str, Any]) -> None:
    """Check that an output holds neither a prepared set nor episodes of another draw.

    Raises:
        ConfigError: If it does.
    """
    if (output / MANIFEST).is_file():
        raise ConfigError(f"output={output}: holds a prepared set; give the episodes another")
    found = read_json(output / EPISODES_RECORD)
    if not isinstance(found, dict):
        return
    other = [key for key, value in record.items() if found.get(key) != value]
    if other:
        raise ConfigError(
            f"output={output}: holds other episodes ({other[0]}: {found.get(other[0])} found, "
            f"{record[other[0]]} asked); choose another output or delete the folder"
        )
