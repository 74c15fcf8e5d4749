"""Small sources and files for the data tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recon_ray.data.format.files import read_table
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.format.schema import KINDS
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.procedural.synthetic import SyntheticSource

if TYPE_CHECKING:
    from recon_ray.data.format.prepared import Split
    from recon_ray.storage import Place

OPTIONS = PrepareOptions(num_points=64, views=2, image_size=32, samples_per_shard=4)
SOURCE = SyntheticSource(train_per_class=5, test_per_class=2, categories=("chair", "mug"))


def cloud(seed: int, count: int = 80) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def write_clouds(folder: Path, names: list[str], count: int = 80) -> None:
    for seed, name in enumerate(names):
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, cloud(seed, count))


def file_hashes(manifest: dict[str, Any]) -> list[str]:
    """Hashes of the tables that hold the names and the hashes of all shards."""
    return [entry["sha256"] for entry in manifest["shards"]]


def as_version_2(root: Path) -> dict[str, Any]:
    """Rewrite the manifest of a set as one of version 2, which lists the shards in its JSON."""
    prepared = PreparedSet.open(root)
    manifest = {**prepared.manifest, "schema_version": 2}
    for name in ("shards", "version"):
        del manifest[name]
    for name, split in prepared.splits.items():
        old = {key: manifest["splits"][name][key] for key in ("rows", "planned", "first_sample_id")}
        old["shards"] = [
            _shard(prepared.path, split, number) for number in range(len(split.geometry))
        ]
        manifest["splits"][name] = old
    (Path(root) / "_manifest.json").write_text(json.dumps(manifest))
    (Path(root) / "_shards-1.parquet").unlink()
    return manifest


def _shard(root: Place, split: Split, number: int) -> dict[str, Any]:
    ids = read_table(split.geometry[number], ["sample_id"])["sample_id"].to_pylist() or [None]
    rows = int(split.shard_rows[number])
    shard: dict[str, Any] = {"rows": rows, "min_sample_id": ids[0], "max_sample_id": ids[-1]}
    for kind in KINDS:
        files = getattr(split, kind)
        file = files[number] if files else None
        shard[kind] = file and {
            "file": file.below(root), "bytes": file.size, "sha256": file.sha256
        }  # fmt: skip
    return shard


def read_manifest(root: Path | Place) -> dict[str, Any]:
    return json.loads((root / "_manifest.json").read_bytes())
