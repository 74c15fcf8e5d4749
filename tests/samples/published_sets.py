"""Writes small data sets in the layouts of their publishers, with nothing of the package."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CHAIR, MUG = "03001627", "03797390"


def points(seed: int, count: int = 64, columns: int = 3) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(count, columns)).astype(np.float32)
    if columns == 6:
        values[:, 3:] /= np.linalg.norm(values[:, 3:], axis=1, keepdims=True)
    return values


def write_shapenet55(
    root: Path, train: Sequence[str], test: Sequence[str], *, texts: Sequence[tuple[str, str]] = ()
) -> dict[str, np.ndarray]:
    """Clouds and pictures of ``<synset>-<model>`` names, and the two lists."""
    clouds = {}
    for folder in ("shapenet_pc", "shapenet_img", "ShapeNet-55"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate([*train, *test]):
        clouds[name] = points(seed)
        np.save(root / "shapenet_pc" / f"{name}.npy", clouds[name])
        Image.new("RGB", (32, 32), (seed, 100, 200)).save(root / "shapenet_img" / f"{name}.png")
    for split, names in (("train", train), ("test", test)):
        lines = "".join(f"{name}.npy\r\n" for name in names)
        (root / "ShapeNet-55" / f"{split}.txt").write_bytes(lines.encode())
    if texts:
        columns = {
            "catalogue": {str(i): int(synset) for i, (synset, _) in enumerate(texts)},
            "describe": {str(i): text for i, (_, text) in enumerate(texts)},
        }
        (root / "shapenet55.json").write_text(json.dumps(columns))
    return clouds


def write_h5(path: Path, data: np.ndarray, labels: Any, **more: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"] = data
        file["label"] = np.asarray(labels)
        for name, values in more.items():
            file[name] = values


def write_modelnet_texts(
    root: Path, train: Sequence[str], test: Sequence[str], number: int = 40
) -> dict[str, np.ndarray]:
    """``<class>/<class>_<number>.txt`` with six numbers a line, and the lists."""
    clouds = {}
    for seed, name in enumerate([*train, *test]):
        clouds[name] = points(seed, columns=6)
        folder = root / name.rpartition("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        lines = (",".join(f"{value:.6f}" for value in row) for row in clouds[name])
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    for split, names in (("train", train), ("test", test)):
        (root / f"modelnet{number}_{split}.txt").write_text("\n".join(names) + "\n")
    return clouds


def write_modelnet_dat(path: Path, clouds: Sequence[np.ndarray], labels: Sequence[int]) -> None:
    """A pickle of a list of clouds and a list of labels, each an array of one number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = [list(clouds), [np.array([label], np.int32) for label in labels]]
    path.write_bytes(pickle.dumps(content))


def write_shapenetpart(
    root: Path, splits: Mapping[str, Mapping[str, np.ndarray]], categories: Mapping[str, str]
) -> None:
    """Tables of seven columns by ``<synset>/<model>``, and the JSON lists."""
    (root / "train_test_split").mkdir(parents=True)
    lines = "".join(f"{category}\t{synset}\n" for synset, category in categories.items())
    (root / "synsetoffset2category.txt").write_text(lines)
    for split in ("train", "val", "test"):
        shapes = splits.get(split, {})
        for name, table in shapes.items():
            (root / name).parent.mkdir(exist_ok=True)
            np.savetxt(root / f"{name}.txt", table, fmt="%.6f")
        listed = [f"shape_data/{name}" for name in shapes]
        path = root / "train_test_split" / f"shuffled_{split}_file_list.json"
        path.write_text(json.dumps(listed))


def write_episode(
    root: Path, way: int, shot: int, fold: int, episode: Mapping[str, Sequence[tuple]]
) -> Path:
    path = root / f"{way}way_{shot}shot" / f"{fold}.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({split: list(rows) for split, rows in episode.items()}))
    return path


def openshape_sample(seed: int, width: int = 8, views: int = 12) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def feature() -> dict[str, np.ndarray]:
        return {
            kind: rng.normal(size=width).astype(np.float32) for kind in ("original", "prompt_avg")
        }

    return {
        "dataset": "Objaverse",
        "id": str(seed),
        "xyz": points(seed),
        "rgb": rng.random((64, 3)).astype(np.float32),
        "image_feat": rng.normal(size=(views, width)).astype(np.float32),
        "thumbnail_feat": rng.normal(size=width).astype(np.float32),
        "text": [f"name {seed}"],
        "text_feat": [feature()],
        "blip_caption": f"a thing {seed}",
        "blip_caption_feat": feature(),
        "msft_caption": "",
        "msft_caption_feat": None,
        "retrieval_text": ["one", "two", "three", "four"],
        "retrieval_text_feat": [feature() for _ in range(4)],
    }


def write_openshape(
    root: Path, samples: Mapping[tuple[str, str, str], Any], flags: Mapping[str, str] | None = None
) -> Path:
    """``<dataset>/<group>/<id>.npy`` dicts, the split list, and the verdicts on the names."""
    shapes = root / "objaverse-processed" / "merged_for_training_final"
    for (dataset, group, name), content in samples.items():
        (shapes / dataset / group).mkdir(parents=True, exist_ok=True)
        np.save(shapes / dataset / group / f"{name}.npy", content, allow_pickle=True)
    (root / "meta_data" / "split").mkdir(parents=True)
    listed = [{"dataset": d, "group": g, "id": i} for d, g, i in samples]
    (root / "meta_data" / "split" / "train_all.json").write_text(json.dumps(listed))
    if flags is not None:
        verdicts = {name: {"flag": flag} for name, flag in flags.items()}
        (root / "meta_data" / "gpt4_filtering.json").write_text(json.dumps(verdicts))
    return shapes


def _values(table: pa.Table, name: str) -> list[Any]:
    stored = (table.schema.field(name).metadata or {}).get(b"tensor")
    if stored is None:
        return table[name].to_pylist()
    tensor = json.loads(stored)
    rows = table[name].to_pylist()
    return [np.frombuffer(row, tensor["dtype"]).reshape(tensor["shape"]) for row in rows]


def read_rows(path: Path, split: str, columns: Sequence[str] = ("points",)) -> dict[str, Any]:
    """The rows of a prepared set by object id, read with pyarrow and numpy alone."""
    rows: dict[str, Any] = {}
    for file in sorted((path / "geometry" / split).glob("*.parquet")):
        table = pq.read_table(file)
        values = [_values(table, name) for name in columns]
        for index, name in enumerate(table["object_id"].to_pylist()):
            row = [value[index] for value in values]
            rows[name] = row[0] if len(columns) == 1 else row
    return rows


def quarantine(path: Path) -> dict[str, str]:
    """What a prepared set left out, by object id."""
    lines = (path / "_quarantine.jsonl").read_text().splitlines()
    return {entry["object_id"]: entry["reason"] for entry in map(json.loads, lines)}
