"""Data sources by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recon_ray.data.sources.base import Source
from recon_ray.data.sources.custom import CustomSource
from recon_ray.data.sources.fewshot import FewshotSource
from recon_ray.data.sources.hdf5_set import Hdf5Source
from recon_ray.data.sources.modelnet import ModelNetSource
from recon_ray.data.sources.openshape import OpenShapeSource
from recon_ray.data.sources.procedural.synthetic import SyntheticSource
from recon_ray.data.sources.scanobjectnn import FILES, ScanObjectNNSource
from recon_ray.data.sources.shapenet55 import ShapeNet55Source
from recon_ray.data.sources.shapenetpart import ShapeNetPartSource
from recon_ray.errors import ConfigError

PUBLISHED: dict[str, Callable[[Path, str], Source]] = {
    "shapenet55": ShapeNet55Source,
    "modelnet40": ModelNetSource,
    "modelnet10": ModelNetSource,
    **dict.fromkeys(FILES, ScanObjectNNSource),
    "shapenetpart": ShapeNetPartSource,
    "fewshot": FewshotSource,
    "openshape": OpenShapeSource,
    "hdf5": Hdf5Source,
}
SOURCES: tuple[str, ...] = ("synthetic", "custom", *PUBLISHED)


def create_source(name: str, folder: Path | None, settings: Mapping[str, Any]) -> Source:
    """Make one of the :data:`SOURCES` for a folder; ``synthetic`` needs none.

    The settings are the user's choices, by the names of the sources' attributes: seed,
    train_per_class, test_per_class (synthetic), table, test_fraction (custom); others are ignored.

    Raises:
        ConfigError: If the name is unknown, or the folder or the table is missing.
    """

    def chosen(*names: str) -> dict[str, Any]:
        return {name: settings[name] for name in names if name in settings}

    if name not in SOURCES:
        raise ConfigError(f"source={name}: unknown; choose from {', '.join(SOURCES)}")
    if name == "synthetic":
        return SyntheticSource(**chosen("seed", "train_per_class", "test_per_class"))
    if folder is not None and folder.is_file():
        raise ConfigError(
            f"input={folder}: it is a file, and no .zip or .tar archive; give the folder that "
            "holds the shapes"
        )
    if folder is None or not folder.is_dir():
        raise ConfigError(f"input={folder}: no such folder; give the folder that holds the shapes")
    if name != "custom":
        return PUBLISHED[name](folder, name)
    table = None if settings.get("table") is None else Path(settings["table"])
    if table is not None and not table.is_file():
        raise ConfigError(f"prepare.table={table}: no such file; give a CSV or Parquet table")
    return CustomSource(folder, table, **chosen("seed", "test_fraction"))
