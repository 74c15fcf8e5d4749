"""Sources that cannot be prepared: shapes, tables, archives, published sets, exports."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_samples import cloud
from job_runs import ROOT, Jobs, file_tree, quarantined, write_clouds
from PIL import Image

from recon_ray.data.format.prepared import PreparedSet


def _with_nan() -> np.ndarray:
    points = cloud(0)
    points[3] = np.nan
    return points


def _half_an_hdf5() -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["data"] = np.stack([cloud(i) for i in range(9)])
        file["label"] = np.zeros((9, 1), np.int64)
    return content.getvalue()[: len(content.getvalue()) // 2]


def write(path: Path, content: np.ndarray | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)


PLY = (
    b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\n"
    b"property float z\nelement face 0\nproperty list uchar int vertex_indices\nend_header\n"
    b"0 0 0\n1 0 0\n0 1 0\n"
)
BAD_SHAPES: list[tuple[str, np.ndarray | bytes, str]] = [
    ("nan.npy", _with_nan(), r"nan\.npy: 1 of 80 points are not finite \(NaN or infinite\)"),
    ("one.npy", cloud(0, 1), r"one\.npy: holds one point only"),
    ("few.npy", cloud(0, 9), r"few\.npy: holds 9 points, fewer than"),
    ("none.npy", b"", r"none\.npy: the file is empty"),
    ("junk.npy", b"junk", r"junk\.npy: cannot be read as an array of"),
    ("junk.npz", b"PK junk", r"junk\.npz: cannot be read"),
    ("same.npy", np.ones((80, 3)), r"same\.npy: all 80 points are the"),
    ("flat.off", b"OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", r"flat\.off: the mesh has no faces"),
    ("flat.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\n", r"flat\.obj: holds 3 points, fewer than"),
    ("flat.stl", b"solid x\nendsolid x\n", r"flat\.stl: the mesh has no faces"),
    ("flat.ply", PLY, r"flat\.ply: holds 3 points, fewer than"),
    ("cut.pcd", b"FIELDS x y z\nSIZE 4 4 4\n", r"cut\.pcd: the PCD h"),
    ("text.xyz", b"a b c\n", r"text\.xyz: cannot be read \(ValueErr"),
]


@pytest.mark.parametrize(("name", "content", "reason"), BAD_SHAPES, ids=[s[0] for s in BAD_SHAPES])
def test_a_bad_shape_is_left_out_with_its_reason_and_counted(
    jobs: Jobs, name: str, content: np.ndarray | bytes, reason: str
) -> None:
    clouds = write_clouds(jobs.folder)
    write(clouds / "a" / name, content)
    outcome = jobs.custom(clouds)
    assert "Traceback" not in outcome.done()
    entries = quarantined(jobs.folder / "set")
    assert [entry["file"] for entry in entries] == [f"a/{name}"]
    assert re.search(reason, entries[0]["reason"]), entries[0]["reason"]
    assert f"left out a/{Path(name).stem}: " in outcome.err
    result = json.loads((jobs.runs / "prepare" / "result.json").read_text())
    assert result["metrics"] == {"samples": 12.0, "quarantined": 1.0}
    strict = jobs.custom(clouds, "prepare.max_quarantine_fraction=0", f"output={jobs.folder}/no")
    message = r"1 of 13 .* unreadable, more than the tolerated 0, the first being .*; all r"
    strict.refused(1, message)
    assert quarantined(jobs.folder / "no") == entries
    assert not (jobs.folder / "no" / "_manifest.json").exists()
    assert not (jobs.runs / "prepare" / "result.json").exists()


def test_a_picture_that_does_not_decode_leaves_its_shape_out(jobs: Jobs) -> None:
    clouds, table = write_clouds(jobs.folder), jobs.folder / "table.csv"
    Image.new("RGB", (40, 40)).save(clouds / "good.png")
    (clouds / "bad.png").write_bytes((clouds / "good.png").read_bytes()[:50])
    names = sorted(str(path.relative_to(clouds)) for path in clouds.rglob("*.npy"))
    rows = [f"{name},{'bad' if i == 0 else 'good'}.png" for i, name in enumerate(names)]
    table.write_text("file,image\n" + "\n".join(rows))
    views = ("prepare.views=1", "prepare.image_size=32", f"prepare.table={table}")
    jobs.custom(clouds, *views).done()
    (entry,) = quarantined(jobs.folder / "set")
    assert re.search(r"bad\.png: the image does not decode \(\w+\)", entry["reason"])


def test_a_folder_of_unreadable_files_only_is_status_1(jobs: Jobs) -> None:
    clouds = write_clouds(jobs.folder)
    for path in clouds.rglob("*.npy"):
        path.write_bytes(b"junk")
    outcome = jobs.custom(clouds, "prepare.max_quarantine_fraction=0.99")
    message = r"\d+ of 12 samples are unreadable, .*all reasons are in .*_quarantine\.json"
    outcome.refused(1, message)
    assert not (jobs.folder / "set" / "_manifest.json").exists()
    outcome = jobs.pretrain(f"data.path={jobs.folder / 'set'}")
    outcome.refused(1, r"/set: is not a complete prepared set")


WRONG_SOURCES: list[tuple[str, int, str]] = [
    ("source=custom", 2, r"source=custom needs input=<folder>"),
    ("source=modelnet", 2, r"source \(command line\): expected one of synthetic, custom"),
    (f"source=custom input={ROOT / 'LICENSE'}", 2, r"LICENSE: it is a file, and no \.zip or"),
    ("source=custom input=/absent", 2, r"input=/absent: no such folder; give the folder that"),
    ("source=custom input={empty}", 1, r"empty: holds no shape files; expected one of \.glb"),
    (
        "source=custom input={empty} prepare.table=/absent.csv",
        2,
        r"prepare\.table=/absent\.csv: no such file; give a CSV or Parquet table",
    ),
    (
        "source=custom input={empty} prepare.table={table}",
        1,
        r"table\.csv: has no column 'file', only path, category",
    ),
    ("output={table}", 2, r"output=.*table\.csv: it is a file; give a folder"),
    ("prepare.num_points=1", 2, r"prepare\.num_points: expected at least 2, found 1"),
    ("run.storage={table}", 2, r"run\.storage=.*table\.csv: .*cannot be made or written to"),
]


@pytest.mark.parametrize(("options", "status", "message"), WRONG_SOURCES)
def test_bad_sources_are_refused(jobs: Jobs, options: str, status: int, message: str) -> None:
    empty, table, target = jobs.folder / "empty", jobs.folder / "table.csv", jobs.folder / "set"
    empty.mkdir()
    table.write_text("path,category\na.npy,a\n")
    filled = options.format(empty=empty, table=table).split()
    jobs.prepare(f"output={target}", *filled).refused(status, message)
    assert not target.exists()
    assert not (jobs.runs / "prepare" / "result.json").exists()
    assert status == 1 or jobs.left_behind() == []


def test_the_output_of_other_options_is_not_touched(jobs: Jobs) -> None:
    clouds = write_clouds(jobs.folder)
    jobs.custom(clouds).done()
    before = file_tree(jobs.folder / "set")
    outcome = jobs.custom(clouds, "prepare.num_points=32")
    outcome.refused(1, r"/set: holds another prepared set \(prepare\.num_points: 64 \(found\) / 32")
    assert file_tree(jobs.folder / "set") == before


class _Runs:
    """Unpickles by running a program."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harm",)


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
        ("modelnet40", {}, r"/in: expected modelnet40_train\.txt, \*\.dat, .*neither"),
        ("hdf5", {"a_train.h5": _half_an_hdf5()}, r"a_train\.h5: is damaged or cut off, or not an"),
        ("shapenet55", {"shapenet_pc/a.npy": b""}, r"55/train\.txt: the list is missing"),
        ("modelnet40", {"robot/train/a.off": b""}, r"/in: expected modelnet40_train\.txt, \*\.dat"),
        (
            "scanobjectnn_obj_bg",
            {f"main_split/{name}_objectdataset.h5": b"cut" for name in ("training", "test")},
            r"training_objectdataset\.h5: is damaged or cut off, or not an HDF5 file",
        ),
        (
            "fewshot",
            {"5way_10shot/0.pkl": pickle.dumps({"train": [_Runs()], "test": []})},
            r"5way_10shot/0\.pkl: asks for posix\.system when it is unpickled; only arrays",
        ),
        (
            "modelnet40",
            {
                "modelnet40_train.txt": b"airplane_0001\nairplane_0002\n",
                "modelnet40_test.txt": b"airplane_0003\nxbox_0001\n",
            },
            r"^error: 4 of 4 samples are unreadable, more than the tolerated 2, .*airplane_000\d\.t"
            r"xt: file not found",
        ),
    ],
)
def test_a_damaged_or_incomplete_published_set_is_one_line(
    jobs: Jobs, source: str, files: dict[str, bytes], message: str
) -> None:
    folder, target = jobs.folder / "in", jobs.folder / "set"
    folder.mkdir()
    for name, content in files.items():
        write(folder / name, content)
    outcome = jobs.prepare(
        f"source={source}", f"input={folder}", f"output={target}", "prepare.views=0",
        "prepare.processes=1",
    )  # fmt: skip
    outcome.refused(1, message)
    assert not (target / "_manifest.json").exists()
    assert not Path("harm").exists()


def test_one_id_for_two_files_and_names_that_are_no_utf8_are_refused(jobs: Jobs) -> None:
    clouds, table = write_clouds(jobs.folder), jobs.folder / "table.csv"
    table.write_text("file,object_id\na/00.npy,x\nb/01.npy,x\n")
    jobs.custom(clouds, f"prepare.table={table}").refused(
        1, r"object id 'x' is used twice, by a/00\.npy and b/01\.npy; give each its own"
    )
    os.rename(clouds / "a" / "00.npy", os.fsencode(clouds / "a") + b"/caf\xe9.npy")  # noqa: PTH104
    jobs.custom(clouds).refused(
        1, r"^error: 'a/caf\\udce9\.npy': the name is not UTF-8 text, .* rename it, .*convmv"
    )


def test_a_mesh_without_area_and_clouds_of_other_sizes_are_left_out(jobs: Jobs) -> None:
    clouds = write_clouds(jobs.folder, 40)
    (clouds / "a" / "line.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n")
    np.save(clouds / "b" / "few.npy", cloud(0, 50))
    np.save(clouds / "b" / "more.npy", cloud(0, 500))
    jobs.custom(clouds).done()
    reasons = {entry["file"]: entry["reason"] for entry in quarantined(jobs.folder / "set")}
    assert re.search(r"line\.off: the mesh has no area", reasons.pop("a/line.off"))
    assert re.search(r"few\.npy: holds 50 points, fewer than", reasons.pop("b/few.npy"))
    assert reasons == {}
    manifest = json.loads((jobs.folder / "set" / "_manifest.json").read_text())
    assert (manifest["rows"], manifest["quarantined"], manifest["excluded"]) == (41, 2, 0)


def test_an_archive_that_is_none_is_refused(jobs: Jobs) -> None:
    archive = jobs.folder / "set.zip"
    archive.write_bytes(b"junk")
    outcome = jobs.prepare("source=custom", f"input={archive}", f"output={jobs.folder / 'set'}")
    outcome.refused(1, r"set\.zip: cannot be unpacked \(BadZipFile")
    assert not [path for path in (jobs.folder / "set").rglob("*") if path.is_file()]


def test_an_export_needs_a_set_and_a_folder_of_its_own(jobs: Jobs, copy: Path) -> None:
    jobs.prepare(f"export={copy}").refused(2, r"export needs output=<folder>")
    own = jobs.folder / "own"
    jobs.prepare("export=/absent", f"output={own}").refused(2, r"export=/absent: no such folder")
    jobs.prepare(f"export={copy}", f"verify={copy}", f"output={own}").refused(2, r"two jobs; give")
    jobs.prepare(f"export={copy}", f"output={copy}").refused(1, r"holds something else than an exp")
    assert not own.exists()
    PreparedSet.open(copy).verify()
    jobs.prepare(f"export={copy}", f"output={own}").done()


def test_episodes_of_too_few_classes_are_refused(jobs: Jobs, copy: Path) -> None:
    target = jobs.folder / "episodes"
    jobs.prepare("source=fewshot", f"input={copy}", f"output={target}").refused(
        1, r"/copy: episodes of 10 classes need as many; there are training shapes of 3"
    )
    assert not target.exists()


def test_a_source_in_an_object_store_is_refused(jobs: Jobs):
    outcome = jobs.run("prepare", "source=custom", "input=s3://bucket/shapes")
    outcome.refused(2, r"input .*: this is read from a disk only; give a path, not a URI")
