"""Small sources and files for the data tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.procedural.synthetic import SyntheticSource

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = PrepareOptions(num_points=64, views=2, image_size=32, samples_per_shard=4)
SOURCE = SyntheticSource(train_per_class=5, test_per_class=2, categories=("chair", "mug"))


def cloud(seed: int, count: int = 80) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def write_clouds(folder: Path, names: list[str], count: int = 80) -> None:
    for seed, name in enumerate(names):
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, cloud(seed, count))


def file_hashes(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            parts = [shard["geometry"], shard["views"]]
            found += [(part["file"], part["sha256"]) for part in parts if part is not None]
    return found


def read_manifest(root: Path) -> dict[str, Any]:
    return json.loads((root / "_manifest.json").read_text())
