"""Bad input, as a user gives it: one clear sentence, the exit status, and nothing half-written.

Status 2: the configuration or the arguments are wrong; 1: anything else; 130: interrupted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image

from recon_ray.cli import run_job
from recon_ray.config.help import dump_yaml
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.models.recon import Recon
from recon_ray.models.twotower import TwoTower
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.tasks import run_figures as figures
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.pretrain.task import PretrainModule
from recon_ray.weights.weight_files import save_weights

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("eval.enabled=false", "train.steps=1")
FULL = OSError(errno.ENOSPC, "No space left on device")
DRAW = figures.draw_pretraining


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    status: int
    out: str
    err: str

    def complaints(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]

    def refused(self, status: int, message: str) -> None:
        """One sentence that matches, no traceback, the status."""
        assert "Traceback" not in self.err
        assert len(self.complaints()) == 1, self.err
        assert self.err.rstrip().splitlines()[-1] == self.complaints()[0]
        assert re.search(message, self.complaints()[0]), self.complaints()[0]
        assert self.status == status
        assert self.out == ""

    def done(self) -> str:
        assert self.status == 0, self.err
        assert self.complaints() == []
        return self.err


class Jobs:
    """Runs the jobs in this process, in a folder of their own."""

    def __init__(self, folder: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.config = config
        self.runs = folder / "runs"
        self._capsys = capsys

    def pretrain(self, *arguments: object) -> Outcome:
        given = [str(self.config), *map(str, arguments)]
        return self._outcome(run_job("pretrain", given))

    def prepare(self, *arguments: object) -> Outcome:
        given = [f"run.storage={self.runs}", "run.name=prepare", *map(str, arguments)]
        return self._outcome(run_job("prepare", given))

    def custom(self, source: Path, *arguments: object) -> Outcome:
        """Prepare a folder of clouds, in this process, to ``set``."""
        return self.prepare(
            "source=custom", f"input={source}", f"output={self.folder / 'set'}",
            "prepare.num_points=64", "prepare.views=0", "prepare.processes=1", *arguments,
        )  # fmt: skip

    def import_weights(self, *arguments: object) -> Outcome:
        given = [f"run.storage={self.runs}", *map(str, arguments)]
        status = run_job("import_weights", given)
        return self._outcome(status)

    def finetune(self, *arguments: object) -> Outcome:
        tiny = (
            "model.preset=nano", "model.embed_dim=24", "model.depth=2", "model.num_heads=2",
            "model.num_groups=8", "model.group_size=8", "data.num_points=64", "train.steps=1",
            "train.global_batch_size=8", "cluster.workers=0", f"run.storage={self.runs}",
            "runtime.threads=1",
        )  # fmt: skip
        given = ["run.name=tuned", *tiny, *map(str, arguments)]
        return self._outcome(run_job("finetune", given))

    def evaluate(self, *arguments: object) -> Outcome:
        own = (f"run.storage={self.runs}", "cluster.workers=0", "runtime.threads=1")
        given = [*own, *map(str, arguments)]
        status = run_job("evaluate", given)
        return self._outcome(status)

    def visualize(self, *arguments: object) -> Outcome:
        given = [f"run.storage={self.runs}", "run.name=pictures", *map(str, arguments)]
        return self._outcome(run_job("visualize", given))

    def sweep(self, *arguments: object) -> Outcome:
        """Sweep a fine-tuning, in this process unless an argument says otherwise."""
        own = f"run.storage={self.runs}", "run.name=sweep", "cluster.workers=0"
        given = [*own, *map(str, arguments)]
        return self._outcome(run_job("sweep", given))

    def fewshot(self, *arguments: object) -> Outcome:
        given = [f"run.storage={self.runs}", "run.name=few", *map(str, arguments)]
        return self._outcome(run_job("fewshot", given))

    def reproduce(self, *arguments: object) -> Outcome:
        own = f"run.storage={self.runs}", "run.name=table", "cluster.workers=0"
        given = [*own, *map(str, arguments)]
        return self._outcome(run_job("reproduce", given))

    def _outcome(self, status: int) -> Outcome:
        out, err = self._capsys.readouterr()
        return Outcome(status, out, err)

    def left_behind(self) -> list[str]:
        """Files in the storage, and temporaries anywhere."""
        files = [path for path in self.runs.rglob("*") if path.is_file()]
        temporary = [path for path in self.folder.rglob("*") if ".tmp-" in path.name]
        return [str(path.relative_to(self.folder)) for path in (*files, *temporary)]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Keep the logging of the test process and its temporary folder apart."""
    monkeypatch.delenv("RECON_DEBUG", raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    root, own = logging.getLogger(), logging.getLogger("recon_ray")
    handlers, level = list(root.handlers), own.level
    yield
    root.handlers[:] = handlers
    own.setLevel(level)
    assert list((tmp_path / "temporary").glob("*.traceback.txt")) == []


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else that these runs do, and is tested elsewhere."""
    monkeypatch.setattr(figures, "draw_pretraining", lambda *_: None)
    monkeypatch.setattr(figures, "draw_classification", lambda *_: None)


@pytest.fixture
def jobs(tiny_config: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Jobs:
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_yaml(tiny_config))
    return Jobs(tmp_path, config, capsys)


@pytest.fixture
def copy(tiny_prepared: PreparedSet, tmp_path: Path) -> Path:
    """A prepared set to damage."""
    return shutil.copytree(tiny_prepared.path, tmp_path / "copy")


def file_tree(folder: Path) -> dict[str, str]:
    """Hash of every file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


# --- Arguments and YAML --------------------------------------------------------------------------

WRONG_OPTIONS: list[tuple[str, str]] = [
    (
        "train.eporch=3",
        r"^error: train\.eporch \(command line\): unknown key; did you mean train\.epochs\?$",
    ),
    ("learning_rate=1", r"learning_rate \(command line\): unknown key; did you mean optim\.lr\?"),
    ("train=3", r"train \(command line\): expected a section with keys epochs, .* found 3"),
    ("train.epochs=many", r"train\.epochs \(command line\): expected an integer >= 1, found"),
    ("optim.lr=.inf", r"optim\.lr \(command line\): expected a number > 0, found \.inf"),
    ("optim.weight_decay=.nan", r"optim\.weight_decay .*expected a number >= 0, found \.nan"),
    ("model.preset=huge", r"model\.preset .*expected one of nano, tiny, small, base, found 'huge'"),
    ("cluster.workers=[3, 2]", r"cluster: workers=\[3, 2\]: min is more than max; give \[2, 3\]$"),
    ("cluster.workers=3", r"train\.global_batch_size=8 is not divisible by 3 workers"),
    ("--workers", r"--workers: unknown flag; options are written key=value, see --help"),
    ("absent.yaml", r"^error: absent\.yaml: no such file$"),
    ("run.name=a/b", r"run\.name \(command line\): expected the name of one folder, found 'a/b'"),
    ("run.name=..", r"run\.name \(command line\): expected the name of one folder, found '\.\.'"),
    ("run.name='a\\b'", r"run\.name \(command line\): expected the name of one folder"),
    # sizes
    (
        "model.num_heads=5",
        r"model\.num_heads=5 does not divide model\.embed_dim=24; choose a divisor, 4 for example",
    ),
    ("model.embed_dim=25", r"model\.num_heads=2 does not divide model\.embed_dim=25"),
    (
        "model.mask_ratio=0.1",
        r"model\.mask_ratio=0\.1 hides none of model\.num_groups=8 patches; give 0\.125 or more",
    ),
    ("model.num_groups=1", r"model\.num_groups=1: one patch has to be hidden and one seen"),
    ("model.num_groups=65", r"model\.num_groups=65 is more than data\.num_points=64; lower it"),
    ("model.group_size=65", r"model\.group_size=65 is more than data\.num_points=64; lower it"),
    ("data.num_points=97", r"data\.num_points=97: .* holds 96 points a shape; lower it"),
    ("data.num_points=4", r"model\.num_groups=8 is more than data\.num_points=4"),
    (
        "train.global_batch_size=25",
        r"train\.global_batch_size=25: the split 'train' has only 24 samples, fewer than one",
    ),
    ("data.limit=7", r"train\.global_batch_size=8: the split 'train' has only 7 samples"),
    # what does not exist
    (
        "model.kind=twotower",
        r"eval\.enabled=true probes features of ReCon, which model\.kind=twotower does not have",
    ),
    ("data.path=/absent/set", r"data\.path=/absent/set: no such folder; give the folder of a"),
    (
        "data.train_splits=[val]",
        r"data\.train_splits: .* has no split 'val'; choose of train, test$",
    ),
    ("eval.split=val", r"eval\.split=val: .* has the splits train, test; choose one of them"),
    ("eval.split=train", r"eval\.split=train: it is trained on; choose a held-out split"),
    ("runtime.device=cuda", r"runtime\.device=cuda: torch finds no usable GPU in this process"),
    ("run.storage=/dev/null/runs", r"run\.storage=/dev/null/runs: .*\(Not a directory\); choose"),
    (
        "run.storage=s3://me:s3cret@bucket/runs",
        r"^error: (?!.*s3cret)run\.storage .*the URI has a password in it, .*; leave it out",
    ),
    ("run.storage=gopher://x", r"run\.storage=gopher://x: it cannot be reached .*give a folder"),
    ("resume=/absent/step-1", r"resume=/absent/step-1: no checkpoint there \(MANIFEST\.json is"),
    ("resume=gopher://x/step-1", r"resume=gopher://x/step-1: it cannot be reached"),
    # teachers
    (
        "teacher.image.name=clip",
        r"teacher\.image: Teacher 'clip' is unknown; give open_clip:<arch>:<tag or file>, timm:",
    ),
    ("teacher.text.name=timm:vit_tiny_patch16_224", r"teacher\.text: .*timm has image encoders"),
    ("teacher.text.name=descriptor:4", r"teacher\.text: .*with a width of 8 or more"),
    (
        "teacher.image.name=timm:vit_tiny_patch16_224:/absent.pth",
        r"teacher\.image: .*there is no file /absent\.pth; give the path of a file of weights",
    ),
    (
        "teacher.text.name=open_clip:ViT-B-32:/absent.pt",
        r"teacher\.text: .*there is no file /absent\.pt; give the path of a file of weights",
    ),
    ("teacher.text.name=open_clip:ViT-Q", r"teacher\.text: .*open_clip has no architecture"),
]


@pytest.mark.parametrize(("argument", "message"), WRONG_OPTIONS, ids=[a for a, _ in WRONG_OPTIONS])
def test_a_wrong_option_is_refused_before_anything_is_written(
    jobs: Jobs, argument: str, message: str
) -> None:
    if argument == "runtime.device=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has what is asked for")
    jobs.pretrain(argument).refused(2, message)
    assert jobs.left_behind() == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: [1,\n  epochs: {\n", r"bad\.yaml:3: not valid YAML: "),
        (b"- train\n- optim\n", r"bad\.yaml:1: expected `key: value` lines at the top level"),
        (b"train:\n  epoch: 3\n", r"train\.epoch \(.*bad\.yaml:2\): unknown key; did you mean tra"),
        (b"include: [gone.yaml]\n", r"gone\.yaml: no such file \(included at .*bad\.yaml:1\)"),
        (b"\xff\xfe", r"bad\.yaml: not UTF-8 text \(byte 0\)"),
    ],
)
def test_a_yaml_file_that_cannot_be_read_is_named_with_the_line(
    jobs: Jobs, content: bytes, message: str
) -> None:
    path = jobs.folder / "bad.yaml"
    path.write_bytes(content)
    jobs.pretrain(path).refused(2, message)
    assert jobs.left_behind() == []


@pytest.mark.parametrize(
    "options",
    [
        ("cluster.workers=2", "data.mode=stream", "data.limit=8"),
        ("cluster.workers=1", "data.mode=cached", "data.limit=8"),
    ],
)
def test_a_limit_of_a_stream_is_refused(jobs: Jobs, options: tuple[str, ...]) -> None:
    jobs.pretrain(*options).refused(2, r"data\.limit=8 needs data\.mode=shared, found data\.mode=")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["teacher.text.name=null"], r"distills from both teachers, found teacher\.text\.name=nu"),
        (["loss.self_contrast=true"], r"has no class token for loss\.self_contrast=true; leave it"),
        (["validation.every_epochs=1"], r"validation\.every_epochs=1 probes features of ReCon"),
    ],
)
def test_two_towers_refuse_what_they_do_not_have(
    jobs: Jobs, options: list[str], message: str
) -> None:
    given = ["model.kind=twotower", "eval.enabled=false", *options]
    jobs.pretrain(*given).refused(2, message)


def test_no_augmentation_cannot_run_on_the_device(jobs: Jobs) -> None:
    jobs.pretrain("teacher.image.augment=none", "teacher.image.augment_on=device").refused(
        2, r"augment_on=device needs teacher\.image\.augment=reference, found .*augment=none"
    )


def test_other_weights_of_a_teacher_than_the_pinned_ones_are_status_1(jobs: Jobs) -> None:
    outcome = jobs.pretrain(f"teacher.image.sha256={'0' * 64}")
    outcome.refused(1, r"teacher\.image: .*its weights have sha256 1317.*, but 0000.* is pinned;")
    assert jobs.left_behind() == []


def test_weights_that_are_none_are_status_1(jobs: Jobs) -> None:
    file = jobs.folder / "weights.pt"
    file.write_bytes(b"no weights")
    outcome = jobs.pretrain(f"teacher.text.name=open_clip:ViT-B-32:{file}")
    outcome.refused(1, r"teacher\.text: Teacher weights .*weights\.pt cannot be read as")
    assert jobs.left_behind() == []


def test_a_forced_backend_that_is_absent_is_status_1(jobs: Jobs) -> None:
    jobs.pretrain("runtime.ops_backend=pointnet2_ops").refused(1, "pointnet2_ops is not installed")
    assert jobs.left_behind() == []


def test_a_set_too_small_for_the_model_is_not_made(jobs: Jobs) -> None:
    target = jobs.folder / "made"
    outcome = jobs.pretrain(
        f"data.path={target}", "data.create=synthetic", "data.num_points=512",
        "prepare.num_points=256",
    )  # fmt: skip
    outcome.refused(2, r"data\.num_points=512: .*prepare\.num_points=256; lower the one or raise")
    assert not target.exists()


def test_a_mistyped_path_does_not_become_the_set_that_a_file_asks_for(jobs: Jobs) -> None:
    text = jobs.config.read_text()
    assert "create: never" in text
    jobs.config.write_text(text.replace("create: never", "create: synthetic"))
    for flags in ((), ("--dry-run",)):
        outcome = jobs.pretrain(f"data.path={jobs.folder / 'mistyped'}", *flags)
        outcome.refused(2, r"data\.path=.*/mistyped: no such folder; give the folder of a prepared")
    assert not (jobs.folder / "mistyped").exists()
    assert jobs.left_behind() == []


def test_a_dry_run_counts_the_shapes_that_data_limit_leaves(jobs: Jobs) -> None:
    outcome = jobs.pretrain("--dry-run", "data.limit=16")
    outcome.done()
    assert re.search(r"training samples +16\nsteps an epoch +2\n", outcome.out)


def test_too_few_shapes_for_the_probes_are_refused(jobs: Jobs) -> None:
    jobs.pretrain("eval.limit=1", "train.steps=1").refused(2, r"eval\.limit=1: that leaves 1 clas")


# --- The cluster ---------------------------------------------------------------------------------


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray that has two CPUs, on paper."""
    resources = {"CPU": 2.0, "object_store_memory": 1e9}
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": resources}])
    monkeypatch.setattr("recon_ray.cluster.session.prepare_environment", lambda options: None)


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("cluster.workers=4",),
            r"cluster\.workers=4: they reserve 4 CPUs \(1 each\), the cluster has 2; lower",
        ),
        (
            ("cluster.workers=2", "data.mode=stream"),
            r"data\.mode=stream needs one free CPU .* 2 workers x 1 CPUs leave 0 of 2: set",
        ),
        (
            ("cluster.workers=1", "runtime.device=cuda"),
            r"runtime\.device=cuda: the cluster has 0 GPUs for 1 workers",
        ),
    ],
)
def test_what_the_cluster_cannot_hold_is_refused_before_the_run_begins(
    jobs: Jobs, options: tuple[str, ...], message: str
) -> None:
    jobs.pretrain("cluster.address=auto", *options).refused(2, message)
    assert jobs.left_behind() == []


# --- Prepared sets -------------------------------------------------------------------------------


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def _first_shard(root: Path, kind: str = "geometry", split: str = "train") -> Path:
    return sorted((root / kind / split).glob("*.parquet"))[0]


def _change_manifest(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((root / "_manifest.json").read_text())
    change(manifest)
    (root / "_manifest.json").write_text(json.dumps(manifest))


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "other-version",
        lambda root: _change_manifest(root, lambda manifest: manifest.update(schema_version=9)),
        r"_manifest\.json: has schema version 9, but this package reads versions 1 and 2; pre",
    ),
    (
        "no-splits",
        lambda root: _change_manifest(root, lambda manifest: manifest.pop("splits")),
        r"_manifest\.json: is not a readable manifest \(KeyError: 'splits'\); prepare it again",
    ),
    (
        "no-manifest",
        lambda root: (root / "_manifest.json").unlink(),
        r"copy: is no complete prepared set \(_manifest\.json is missing\); run the prepare job",
    ),
    (
        "missing-shard",
        lambda root: _first_shard(root).unlink(),
        r"part-00000-of-0000\d\.parquet: the shard is missing; run the prepare job again to rebu",
    ),
    (
        "cut-shard",
        lambda root: os.truncate(_first_shard(root), 900),
        r"part-00000-of-0000\d\.parquet: is not a readable Parquet file; prepare it again",
    ),
    (
        "flipped-points",  # decodes all the same
        lambda root: _flip(_first_shard(root), _first_shard(root).stat().st_size // 2),
        r"geometry/train/part-00000.*: is damaged or was changed \(its SHA-256 is not the manif.*"
        r"delete it and repeat the job that made it, which rebuilds it",
    ),
    (
        "flipped-views",
        lambda root: _flip(_first_shard(root, "views"), 200),
        r"views/train/part-00000.*: is damaged or was changed",
    ),
    (
        "flipped-test",
        lambda root: _flip(_first_shard(root, split="test"), 200),
        r"geometry/test/part-00000.*: is damaged or was changed",
    ),
]


@pytest.mark.parametrize(
    ("damage", "message"), [row[1:] for row in DAMAGES], ids=[row[0] for row in DAMAGES]
)
def test_a_damaged_set_is_found_before_training(
    jobs: Jobs, copy: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(copy)
    jobs.pretrain(f"data.path={copy}").refused(1, message)
    assert jobs.left_behind() == []
    if "no split" not in message:
        jobs.prepare(f"verify={copy}").refused(1, message)
        assert jobs.left_behind() == []


def test_verifying_can_be_left_out(jobs: Jobs, copy: Path) -> None:
    _flip(_first_shard(copy, split="test"), 200)
    jobs.pretrain(f"data.path={copy}", "data.verify=false", *QUICK).done()


def test_a_whole_set_verifies_and_an_absent_one_is_status_2(jobs: Jobs, copy: Path) -> None:
    assert jobs.prepare(f"verify={copy}").done()
    jobs.prepare("verify=/absent/set").refused(2, r"verify=/absent/set: no such folder; give the")


def test_a_set_of_which_some_shapes_have_no_class_is_not_taught_with_classes(jobs: Jobs) -> None:
    clouds, table = _clouds(jobs.folder), jobs.folder / "table.csv"
    names = sorted(str(path.relative_to(clouds)) for path in clouds.rglob("*.npy"))
    rows = [f"{name},{'' if i == 3 else 'ab'[i % 2]},train" for i, name in enumerate(names)]
    table.write_text("file,category,split\n" + "\n".join(rows))
    jobs.custom(clouds, f"prepare.table={table}").done()
    shutil.rmtree(jobs.runs)
    options = (f"data.path={jobs.folder / 'set'}", "teacher.image.name=null", *QUICK)
    outcome = jobs.pretrain(*options)
    outcome.refused(2, r"teacher\.text\.name: 1 of 12 training shapes of .*/set have no class; pr")
    assert jobs.left_behind() == []
    jobs.pretrain(*options, "data.text=caption").done()


def test_pictures_are_asked_for_where_there_are_none(jobs: Jobs) -> None:
    jobs.custom(_clouds(jobs.folder)).done()
    shutil.rmtree(jobs.runs)
    absent = "teacher.image.name=timm:vit_tiny_patch16_224:/absent.safetensors"  # never looked for
    outcome = jobs.pretrain(f"data.path={jobs.folder / 'set'}", "eval.enabled=false", absent)
    outcome.refused(2, r"teacher\.image\.name: .*/set holds no images; set teacher\.image\.name=nu")
    assert jobs.left_behind() == []


# --- Sources of prepared sets --------------------------------------------------------------------


def _cloud(seed: int, count: int = 80) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def _clouds(folder: Path, count: int = 12) -> Path:
    """A folder of clouds in two classes."""
    for seed in range(count):
        path = folder / "clouds" / "ab"[seed % 2] / f"{seed:02d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, _cloud(seed))
    return folder / "clouds"


def _save_with_nan(path: Path) -> None:
    points = _cloud(0)
    points[3] = np.nan
    np.save(path, points)


PLY = "ply\nformat ascii 1.0\nelement vertex 3\n{}element face 0\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n"  # noqa: E501

BAD_SHAPES: list[tuple[str, Callable[[Path], object], str]] = [
    ("nan.npy", _save_with_nan, r"nan\.npy: 1 of 80 points are not finite \(NaN or infinite\)"),
    ("one.npy", lambda path: np.save(path, _cloud(0, 1)), r"one\.npy: holds one point only"),
    ("few.npy", lambda path: np.save(path, _cloud(0, 9)), r"few\.npy: holds 9 points, fewer than"),
    ("none.npy", lambda path: path.write_bytes(b""), r"none\.npy: the file is empty"),
    (
        "junk.npy",
        lambda path: path.write_bytes(b"junk"),
        r"junk\.npy: cannot be read as an array of",
    ),
    ("junk.npz", lambda path: path.write_bytes(b"PK junk"), r"junk\.npz: cannot be read"),
    ("same.npy", lambda path: np.save(path, np.ones((80, 3))), r"same\.npy: all 80 points are the"),
    (
        "flat.off",
        lambda path: path.write_text("OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n"),
        r"flat\.off: the mesh has no faces",
    ),
    (
        "flat.obj",
        lambda path: path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n"),
        r"flat\.obj: holds 3 points, fewer than",
    ),
    (
        "flat.stl",
        lambda path: path.write_text("solid x\nendsolid x\n"),
        r"flat\.stl: the mesh has no faces",
    ),
    (
        "flat.ply",
        lambda path: path.write_text(PLY.format("".join(f"property float {a}\n" for a in "xyz"))),
        r"flat\.ply: holds 3 points, fewer than",
    ),
    ("cut.pcd", lambda path: path.write_text("FIELDS x y z\nSIZE 4 4 4\n"), r"cut\.pcd: the PCD h"),
    ("text.xyz", lambda path: path.write_text("a b c\n"), r"text\.xyz: cannot be read \(ValueErr"),
]


def _quarantined(folder: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (folder / "_quarantine.jsonl").read_text().splitlines()))


@pytest.mark.parametrize(
    ("name", "write", "reason"), BAD_SHAPES, ids=[name for name, _, _ in BAD_SHAPES]
)
def test_a_bad_shape_is_left_out_with_its_reason_and_counted(
    jobs: Jobs, name: str, write: Callable[[Path], object], reason: str
) -> None:
    clouds = _clouds(jobs.folder)
    write(clouds / "a" / name)
    outcome = jobs.custom(clouds)
    assert "Traceback" not in outcome.done()
    entries = _quarantined(jobs.folder / "set")
    assert [entry["file"] for entry in entries] == [f"a/{name}"]
    assert re.search(reason, entries[0]["reason"]), entries[0]["reason"]
    assert f"left out a/{Path(name).stem}: " in outcome.err
    result = json.loads((jobs.runs / "prepare" / "result.json").read_text())
    assert result["metrics"] == {"samples": 12.0, "quarantined": 1.0}
    jobs.custom(
        clouds, "prepare.max_quarantine_fraction=0", f"output={jobs.folder / 'no'}"
    ).refused(
        1, r"1 of 13 samples are unreadable, more than the tolerated 0, the first being .*; all rea"
    )
    assert _quarantined(jobs.folder / "no") == entries
    assert not (jobs.folder / "no" / "_manifest.json").exists()
    assert not (jobs.runs / "prepare" / "result.json").exists()


def test_a_picture_that_does_not_decode_leaves_its_shape_out(jobs: Jobs) -> None:
    clouds, table = _clouds(jobs.folder), jobs.folder / "table.csv"
    Image.new("RGB", (40, 40)).save(clouds / "good.png")
    (clouds / "bad.png").write_bytes((clouds / "good.png").read_bytes()[:50])
    names = sorted(str(path.relative_to(clouds)) for path in clouds.rglob("*.npy"))
    rows = [f"{name},{'bad' if i == 0 else 'good'}.png" for i, name in enumerate(names)]
    table.write_text("file,image\n" + "\n".join(rows))
    views = ("prepare.views=1", "prepare.image_size=32", f"prepare.table={table}")
    jobs.custom(clouds, *views).done()
    (entry,) = _quarantined(jobs.folder / "set")
    assert re.search(r"bad\.png: the image does not decode \(\w+\)", entry["reason"])


def test_a_folder_of_unreadable_files_only_is_status_1(jobs: Jobs) -> None:
    clouds = _clouds(jobs.folder)
    for path in clouds.rglob("*.npy"):
        path.write_bytes(b"junk")
    outcome = jobs.custom(clouds, "prepare.max_quarantine_fraction=0.99")
    outcome.refused(
        1, r"\d+ of 12 samples are unreadable, .*all reasons are in .*_quarantine\.json"
    )
    assert not (jobs.folder / "set" / "_manifest.json").exists()
    outcome = jobs.pretrain(f"data.path={jobs.folder / 'set'}")
    outcome.refused(1, r"/set: is no complete prepared set")


WRONG_SOURCES: list[tuple[tuple[str, ...], int, str]] = [
    (("source=custom",), 2, r"source=custom needs input=<folder>"),
    (("source=modelnet",), 2, r"source \(command line\): expected one of synthetic, custom"),
    (("source=custom", f"input={ROOT / 'LICENSE'}"), 2, r"LICENSE: it is a file, and no \.zip or"),
    (("source=custom", "input=/absent"), 2, r"input=/absent: no such folder; give the folder that"),
    (("source=custom", "input={empty}"), 1, r"empty: holds no shape files; expected one of \.glb"),
    (
        ("source=custom", "input={empty}", "prepare.table=/absent.csv"),
        2,
        r"prepare\.table=/absent\.csv: no such file; give a CSV or Parquet table",
    ),
    (
        ("source=custom", "input={empty}", "prepare.table={table}"),
        1,
        r"table\.csv: has no column 'file', only path, category",
    ),
    (("output={table}",), 2, r"output=.*table\.csv: it is a file; give a folder"),
    (("prepare.num_points=1",), 2, r"prepare\.num_points: expected at least 2, found 1"),
    (("run.storage={table}",), 2, r"run\.storage=.*table\.csv: .*cannot be made or written to"),
]


@pytest.mark.parametrize(("arguments", "status", "message"), WRONG_SOURCES)
def test_a_source_that_cannot_be_had_is_refused(
    jobs: Jobs, arguments: tuple[str, ...], status: int, message: str
) -> None:
    empty, table, target = jobs.folder / "empty", jobs.folder / "table.csv", jobs.folder / "set"
    empty.mkdir()
    table.write_text("path,category\na.npy,a\n")
    filled = [argument.format(empty=empty, table=table) for argument in arguments]
    jobs.prepare(f"output={target}", *filled).refused(status, message)
    assert not target.exists()
    assert not (jobs.runs / "prepare" / "result.json").exists()
    assert status == 1 or jobs.left_behind() == []


def test_the_output_of_other_options_is_not_touched(jobs: Jobs) -> None:
    clouds = _clouds(jobs.folder)
    jobs.custom(clouds).done()
    before = file_tree(jobs.folder / "set")
    outcome = jobs.custom(clouds, "prepare.num_points=32")
    outcome.refused(1, r"/set: holds another prepared set \(prepare\.num_points: 64 \(found\) / 32")
    assert file_tree(jobs.folder / "set") == before


# --- Runs and checkpoints ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_step(
    tiny_config_in: Callable[[Path], PretrainConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run of one step, to copy."""
    folder = tmp_path_factory.mktemp("one_step")
    config = folder / "tiny.yaml"
    config.write_text(dump_yaml(tiny_config_in(folder / "runs")))
    arguments = [str(config), *QUICK]
    assert run_job("pretrain", arguments) == 0
    return folder / "runs" / "run"


@pytest.fixture
def finished(jobs: Jobs, one_step: Path) -> Path:
    """The folder of a run of one step."""
    return shutil.copytree(one_step, jobs.runs / "run")


def test_a_run_of_another_configuration_is_not_continued(jobs: Jobs, finished: Path) -> None:
    before = file_tree(finished)
    outcome = jobs.pretrain(*QUICK, "optim.lr=0.5", "train.epochs=9", "train.log_every_steps=7")
    outcome.refused(
        2,
        r"run\.name=run: .*runs/run holds a run with another configuration "
        r"\(optim\.lr: 0\.001 then, 0\.5 now; train\.epochs: 4 then, 9 now\); choose another run\.n"
        r"ame, or resume=never to set it aside$",
    )
    assert file_tree(finished) == before


@pytest.mark.parametrize("known_by", ["environment.json", "result.json"])
def test_a_run_of_another_job_is_neither_continued_nor_set_aside(
    jobs: Jobs, finished: Path, known_by: str, tiny_prepared: PreparedSet
) -> None:
    given = "run.name=run", f"init_from={finished}", f"data.path={tiny_prepared.path}"
    other = {"environment.json": "result.json", "result.json": "environment.json"}[known_by]
    (finished / other).unlink()
    before = file_tree(jobs.runs)
    refusal = r"run\.name=run: .*/runs/run holds a run of jobs/pretrain\.py; choose another run\.n"
    jobs.finetune(*given).refused(2, refusal)
    jobs.visualize(*given, "data.num_points=64").refused(2, refusal)
    assert file_tree(jobs.runs) == before


def test_a_damaged_record_of_the_configuration_is_named(jobs: Jobs, finished: Path) -> None:
    (finished / "config.yaml").write_text("train: [")
    jobs.pretrain(*QUICK).refused(1, r"run/config\.yaml: it is damaged, .*choose another run\.name")


def test_a_run_is_not_continued_with_other_teachers(jobs: Jobs, finished: Path) -> None:
    teachers = json.loads((finished / "teachers.json").read_text())
    teachers["text"]["sha256"] = "0" * 64
    (finished / "teachers.json").write_text(json.dumps(teachers))
    before = file_tree(finished)
    jobs.pretrain(*QUICK).refused(1, r"teacher\.text\.name: this run was started with .*'0000")
    assert file_tree(finished) == before
    (finished / "teachers.json").write_text("{")
    jobs.pretrain(*QUICK).refused(1, r"run/teachers\.json: it is damaged; choose another run\.name")


def _prepare_again(folder: Path) -> None:
    """What a second preparation with other options leaves at the same place."""
    manifest = json.loads((folder / "_manifest.json").read_text())
    (folder / "_manifest.json").write_text(json.dumps({**manifest, "seed": manifest["seed"] + 1}))


def test_a_run_is_not_continued_on_a_set_that_was_prepared_again(jobs: Jobs, copy: Path) -> None:
    given = (*QUICK, f"data.path={copy}")
    jobs.pretrain(*given).done()
    run = jobs.runs / "run"
    assert json.loads((run / "inputs.json").read_text()) == {
        "data.path": PreparedSet.open(copy).manifest_hash
    }
    before = file_tree(run)
    jobs.pretrain(*given).done()  # the same content is gone on with
    before |= file_tree(run)
    kept = (copy / "_manifest.json").read_text()
    _prepare_again(copy)
    jobs.pretrain(*given).refused(
        2,
        r"data\.path=.*/copy: the set is no longer what .*runs/run was begun with .*; put back what"
        r" was there, or choose another run\.name, or resume=never to set this run aside$",
    )
    assert file_tree(run) == before
    (copy / "_manifest.json").write_text(kept)
    jobs.pretrain(*given).done()
    _prepare_again(copy)
    jobs.pretrain(*given, "resume=never").done()
    (run / "inputs.json").write_text("[")
    jobs.pretrain(*given).refused(1, r"run/inputs\.json: it is damaged; choose another run\.name")


def test_a_run_is_not_continued_from_weights_that_were_trained_again(
    jobs: Jobs, finished: Path, tiny_prepared: PreparedSet
) -> None:
    start = (f"data.path={tiny_prepared.path}", f"init_from={finished}")
    jobs.finetune(*start).done()
    tuned = jobs.runs / "tuned"
    vote = (
        f"data.path={tiny_prepared.path}", f"init_from={tuned}", "run.name=voted", "eval.votes=2",
    )  # fmt: skip
    jobs.evaluate(*vote).done()
    before = (tuned / "result.json").read_text()
    jobs.pretrain(*QUICK, "resume=never", "run.seed=4").done()
    jobs.finetune(*start).refused(
        2, r"init_from=.*runs/run: the weights are no longer what .*runs/tuned was begun with"
    )
    assert (tuned / "result.json").read_text() == before
    jobs.evaluate(*vote).done()
    jobs.finetune(*start, "resume=never").done()
    jobs.evaluate(*vote).refused(2, r"init_from=.*runs/tuned: the weights are no longer what")


def test_trials_of_a_sweep_are_not_counted_for_a_set_that_was_prepared_again(
    jobs: Jobs, copy: Path
) -> None:
    options = (
        f"config.data.path={copy}", "config.data.num_points=64", "config.model.preset=nano",
        "config.model.embed_dim=24", "config.model.num_heads=2", "config.model.depth=1",
        "config.model.num_groups=8", "config.model.group_size=8", "config.train.steps=1",
        "config.train.global_batch_size=8",
    )  # fmt: skip
    jobs.sweep(*options, "sweep.seeds=2").done()
    _prepare_again(copy)
    jobs.sweep(*options, "sweep.seeds=2").refused(
        2, r"config\.data\.path=.*/copy: the set is no longer what .*/trials/\S+ was begun with"
    )
    assert len(list((jobs.runs / "sweep" / "trials").iterdir())) == 2


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(
    jobs: Jobs, finished: Path
) -> None:
    _flip(finished / "checkpoints" / "step-00000001" / "model.pt", 500)
    jobs.pretrain("train.steps=2", "eval.enabled=false").refused(
        1, r"run/checkpoints: all 1 checkpoints are damaged; restore one from a copy, or start afre"
    )


def test_a_checkpoint_to_start_from_has_to_be_one_and_to_fit(jobs: Jobs, finished: Path) -> None:
    checkpoint = finished / "checkpoints" / "step-00000001"
    moved = shutil.copytree(checkpoint, jobs.folder / "my-checkpoint")
    shutil.rmtree(jobs.runs)
    resume = f"resume={moved}"
    cases = [
        (
            resume,
            "model.embed_dim=32",
            r"my-checkpoint: encoder\.\w+ has shape .*24.*, the configur",
        ),
        (
            resume,
            "model.depth=3",
            r"my-checkpoint: it does not fit the configured model \(missing: ",
        ),
        (resume, "teacher.text.name=null", r"it does not fit the configured model .*text_proj"),
        (
            f"resume={jobs.folder}",
            "",
            r"resume=.*: no checkpoint there \(MANIFEST\.json is missing",
        ),
        (f"resume={moved}/model.pt", "", r"model\.pt: (no checkpoint there|it cannot be reached)"),
    ]
    for start, option, message in cases:
        jobs.pretrain("run.name=new", start, *filter(None, [option])).refused(2, message)
        assert jobs.left_behind() == []
    log = jobs.pretrain("run.name=new", resume, "train.steps=2", "eval.enabled=false").done()
    assert "(step 1)" in log  # whatever the folder is called
    assert CheckpointStore(str(jobs.runs / "new" / "checkpoints")).names()[-1] == "step-00000002"
    log = jobs.pretrain("run.name=new", resume, "train.steps=2", "eval.enabled=false").done()
    assert f"the run has checkpoints of its own, {moved} is not read again" in log


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: _flip(path / "train.pt", 500), r"resume=.*train\.pt is damaged"),
        (lambda path: (path / "train.pt").unlink(), r"resume=.*train\.pt cannot be read"),
        (lambda path: (path / "MANIFEST.json").write_text("{"), r"MANIFEST\.json cannot be read"),
        (lambda path: (path / "MANIFEST.json").write_text("{}"), r"checkpoint format None, this v"),
        (
            lambda path: (path / "MANIFEST.json").write_text('{"format": 1}'),
            r"MANIFEST\.json: it does not list a whole checkpoint \(step, architecture, files\)",
        ),
    ],
)
def test_a_damaged_checkpoint_to_start_from_is_status_1(
    jobs: Jobs, finished: Path, damage: Callable[[Path], object], message: str
) -> None:
    moved = shutil.copytree(finished / "checkpoints" / "step-00000001", jobs.folder / "step-1")
    shutil.rmtree(jobs.runs)
    damage(moved)
    jobs.pretrain("run.name=new", f"resume={moved}").refused(1, f"{message}.*; give another check")
    assert jobs.left_behind() == []


# --- A full disk ---------------------------------------------------------------------------------


def _refuse(*_: object, **__: object) -> None:
    raise FULL


def test_a_full_disk_while_shards_are_written(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    clouds = _clouds(jobs.folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _refuse)
        outcome = jobs.custom(clouds)
    outcome.refused(
        1, r"/set/.*: cannot be written \(No space left on device\); free space there or"
    )
    assert not (jobs.folder / "set" / "_manifest.json").exists()
    assert not [name for name in jobs.left_behind() if ".tmp-" in name]
    jobs.custom(clouds).done()
    PreparedSet.open(jobs.folder / "set").verify()


def test_a_full_disk_while_files_of_the_run_are_written(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Path.write_text

    def write_text(path: Path, text: str, *more: Any, **options: Any) -> int:
        if path.name.endswith(full):
            written(path, text[:10])
            raise FULL
        return written(path, text, *more, **options)

    monkeypatch.setattr(Path, "write_text", write_text)
    for full in ("config.yaml", "environment.json", "teachers.json", "result.json"):
        outcome = jobs.pretrain(*QUICK)
        outcome.refused(
            1, rf"run/{full}: it could not be written \(No space left on device\); free"
        )
        assert not [name for name in jobs.left_behind() if ".tmp-" in name or full in name]
    full = "nothing"
    jobs.pretrain(*QUICK).done()
    assert (jobs.runs / "run" / "result.json").exists()


def test_a_full_disk_while_a_checkpoint_is_written(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _refuse)
        outcome = jobs.pretrain(*QUICK)
    outcome.refused(
        1, r"checkpoints/step-00000001: the checkpoint could not be written \(.*No space left on"
    )
    run = jobs.runs / "run"
    assert not (run / "result.json").exists()
    assert list((run / "checkpoints").iterdir()) == []
    jobs.pretrain(*QUICK).done()
    records = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == [1]


def test_a_full_disk_while_metrics_are_written(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refuse_metrics(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        if path.name == "metrics.jsonl" and mode == "a":
            raise FULL
        return opened(path, mode, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse_metrics)
        outcome = jobs.pretrain(*QUICK)
    outcome.refused(
        1, r"metrics\.jsonl: the metrics could not be written \(No space left on device"
    )
    assert not (jobs.runs / "run" / "result.json").exists()
    assert not (
        jobs.runs / "run" / "checkpoints"
    ).exists()  # the steps and their records come again
    jobs.pretrain(*QUICK).done()


def test_a_full_disk_while_figures_are_written(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw_pretraining", DRAW)
    with monkeypatch.context() as patch:
        patch.setattr("recon_ray.tasks.run_figures.curve_figure", _refuse)
        outcome = jobs.pretrain(*QUICK)
    assert outcome.status == 1
    (complaint,) = outcome.complaints()
    assert re.search(r"run/figures: a figure could not be written \(No space left", complaint)
    assert outcome.out.rstrip().endswith("run/result.json")
    assert json.loads((jobs.runs / "run" / "result.json").read_text())["status"] == "done"
    assert not (jobs.runs / "run" / "lease.json").exists()
    jobs.pretrain(*QUICK).done()
    assert (jobs.runs / "run" / "figures" / "curves.png").exists()


def _starve(*_: Any, **__: Any) -> Any:
    """Ask for more than any machine has."""
    return torch.empty(1 << 60, dtype=torch.uint8)


def _starve_gpu(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"
    )


def _starve_python(*_: Any, **__: Any) -> Any:
    raise MemoryError


@pytest.mark.parametrize(
    ("starve", "reason"),
    [
        (_starve, r".*you tried to allocate 1152921504606846976 bytes"),
        (_starve_gpu, "Tried to allocate 2.00 GiB"),
        (_starve_python, "MemoryError"),
    ],
)
def test_training_out_of_memory_names_what_to_lower(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, starve: Callable[..., Any], reason: str
) -> None:
    monkeypatch.setattr("recon_ray.train.step.one_step.Step._losses", starve)
    jobs.pretrain(*QUICK).refused(
        1,
        rf"^error: memory is exhausted \({reason}.*\); continue it with "
        r"train\.activation_checkpointing=true \(slower\), or lower train\.micro_batch_size to 4 "
        r"\(a worker holds 8 samples\), .* set data\.residency=host or data\.mode=stream",
    )


def test_an_evaluation_out_of_memory_names_what_to_lower(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, tiny_prepared: PreparedSet
) -> None:
    data = f"data.path={tiny_prepared.path}"
    jobs.finetune(data).done()
    monkeypatch.setattr("recon_ray.tasks.classify.voting.VotingEvaluation._plain", _starve)
    jobs.evaluate(data, f"init_from={jobs.runs / 'tuned'}", "run.name=measured").refused(
        1, r"^error: memory is exhausted \(.*\); lower eval\.batch_size"
    )


def test_an_error_of_another_kind_is_not_taken_for_want_of_memory(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("recon_ray.train.step.one_step.Step._losses", fail)
    monkeypatch.setattr("tempfile.mkstemp", _refuse)  # for the traceback
    jobs.pretrain(*QUICK).refused(1, r"RuntimeError: mat1 and mat2 shapes")


def test_an_error_beyond_these_is_one_line_on_a_full_disk_too(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recon_ray.data.format.prepared.PreparedSet.open", lambda path: 1 / 0)
    monkeypatch.setattr("tempfile.mkstemp", _refuse)
    jobs.pretrain().refused(
        1, r"^error: ZeroDivisionError: .* \(traceback shown with RECON_DEBUG=1\)"
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_is_really_full(jobs: Jobs, small_disk: Path) -> None:
    outcome = jobs.pretrain(f"run.storage={small_disk}", *QUICK)
    outcome.refused(1, r"disk/run/checkpoints/step-00000001: the checkpoint could not be written")
    assert not [path for path in small_disk.rglob("*") if ".tmp-" in path.name]
    assert not (small_disk / "run" / "result.json").exists()
    shutil.rmtree(small_disk / "run")
    clouds = _clouds(jobs.folder, 60)
    outcome = jobs.custom(
        clouds, f"output={small_disk / 'set'}", "prepare.samples_per_shard=30",
        "prepare.num_points=80", "prepare.test_fraction=0", "prepare.views=4",
    )  # fmt: skip
    outcome.refused(
        1, r"disk/set/.*: cannot be written \(No space left on device\); free space the"
    )
    assert not [path for path in small_disk.rglob("*") if ".tmp-" in path.name]
    assert not (small_disk / "set" / "_manifest.json").exists()


# --- Interrupts, and real processes --------------------------------------------------------------


def _interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = PretrainModule.forward, []

    def forward(self: PretrainModule, *arguments: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(PretrainModule, "forward", forward)


def test_an_interrupted_run_says_how_to_go_on_and_does(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("eval.enabled=false", "train.commit_every_seconds=0.001")
    with monkeypatch.context() as patch:
        _interrupted_at(6, patch)
        outcome = jobs.pretrain(*options)
    outcome.refused(130, r"^error: interrupted; the same command with the same run\.name continues")
    assert not (jobs.runs / "run" / "result.json").exists()
    assert "continuing from" in jobs.pretrain(*options).done()
    records = (jobs.runs / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["step"] for record in records] == list(range(1, 13))


def _process(*command: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RECON_DEBUG", None)
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a background job of a shell ignores Ctrl-C, and so would what it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def _end(process: subprocess.Popen[str]) -> Outcome:
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    return Outcome(process.returncode, out, err)


def _wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        if time.monotonic() > end:
            process.kill()
            pytest.fail("it took longer than four minutes")
        time.sleep(0.05)


def test_ctrl_c_in_mid_training_ends_with_one_line_and_the_run_continues(jobs: Jobs) -> None:
    options = (
        "eval.enabled=false", "train.epochs=2000", "train.log_every_steps=1",
        "train.commit_every_seconds=0.2",
    )  # fmt: skip
    process = _process(ROOT / "jobs" / "pretrain.py", jobs.config, *options)
    store = CheckpointStore(str(jobs.runs / "run" / "checkpoints"))
    _wait_until(store.names, process)
    os.killpg(process.pid, signal.SIGINT)
    _end(process).refused(
        130, r"^error: interrupted; the same command with the same run\.name cont"
    )
    assert not [name for name in jobs.left_behind() if ".tmp-" in name or "result.json" in name]
    step = store.load_latest().step
    log = jobs.pretrain(*options, f"train.steps={step + 2}").done()
    assert f"(step {step})" in log
    assert store.load_latest().step == step + 2


def test_ctrl_c_while_several_processes_prepare_ends_with_one_line(jobs: Jobs) -> None:
    target = jobs.folder / "set"
    process = _process(
        ROOT / "jobs" / "prepare.py", f"output={target}", f"run.storage={jobs.runs}",
        "prepare.processes=2", "prepare.samples_per_shard=25", "prepare.views=2",
    )  # fmt: skip
    _wait_until(lambda: list(target.glob("_records/*/*.json")), process)
    os.killpg(process.pid, signal.SIGINT)
    _end(process).refused(130, r"^error: interrupted; run the same command again$")
    assert not (target / "_manifest.json").exists()
    assert not [name for name in jobs.left_behind() if ".tmp-" in name]


@pytest.mark.parametrize(
    ("job", "arguments", "status", "message"),
    [
        ("pretrain", ("train.eporch=3",), 2, r"train\.eporch \(command line\): unknown key"),
        ("pretrain", ("absent.yaml",), 2, r"absent\.yaml: no such file"),
        ("pretrain", ("data.path=mistyped",), 2, "data.path=mistyped: no such folder"),
        ("prepare", ("source=custom", "input=/absent"), 2, r"input=/absent: no such folder"),
    ],
)
def test_the_jobs_as_processes_do_the_same(
    job: str, arguments: tuple[str, ...], status: int, message: str
) -> None:
    _end(_process(ROOT / "jobs" / f"{job}.py", *arguments)).refused(status, message)


# --- Published data sets -------------------------------------------------------------------------


class _Runs:
    """Unpickles by running a program."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harm",)


def _published(jobs: Jobs, source: str) -> Outcome:
    given = f"input={jobs.folder / 'in'}", f"output={jobs.folder / 'set'}"
    return jobs.prepare(f"source={source}", *given, "prepare.views=0", "prepare.processes=1")


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
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
    for name, content in files.items():
        path = jobs.folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    _published(jobs, source).refused(1, message)
    assert not (jobs.folder / "set" / "_manifest.json").exists()
    assert not Path("harm").exists()


# --- Teachers that were run once -----------------------------------------------------------------


def run_teachers(jobs: Jobs, path: Path, *arguments: object) -> Outcome:
    given = [
        f"run.storage={jobs.runs}", "run.name=teachers", "cluster.workers=0", f"data.path={path}",
        "teacher.image.name=descriptor:32", "teacher.text.name=null", "teacher.image.augment=none",
        *map(str, arguments),
    ]  # fmt: skip
    status = run_job("cache_teachers", given)
    return jobs._outcome(status)


@pytest.fixture
def cache(jobs: Jobs, copy: Path) -> Path:
    """The cache of the tiny configuration's image teacher in a set of its own."""
    run_teachers(jobs, copy, "run.seed=3").done()
    shutil.rmtree(jobs.runs)
    return next((copy / "teachers").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["cache.copies=0"], "cache.copies .*: expected an integer >= 1"),
        (
            ["cache.splits=[train,val]"],
            "cache.splits: .* has no split 'val'; choose of train, test",
        ),
        (
            ["teacher.image.name=source"],
            "teacher.image.name=source: .* are in the data set already",
        ),
        (["teacher.image.name=null"], "teacher.image.name and teacher.text.name are both null"),
        (["teacher.image.name=descriptor:x"], "teacher.image: Teacher 'descriptor:x'"),
        (["data.path=nowhere"], "data.path=nowhere: no such folder"),
        (["data.mode=shared"], "data.mode"),
    ],
)
def test_a_wrong_option_of_the_teachers_is_refused(
    jobs: Jobs, copy: Path, options: list[str], message: str
) -> None:
    run_teachers(jobs, copy, *options).refused(2, message)
    assert jobs.left_behind() == []
    assert not (copy / "teachers").exists()


def test_a_set_without_views_has_nothing_to_cache(jobs: Jobs) -> None:
    jobs.custom(_clouds(jobs.folder)).done()
    run_teachers(jobs, jobs.folder / "set").refused(2, "teacher.image.name: .* holds no images")


def test_a_damaged_view_ends_the_teachers_with_its_name(jobs: Jobs, copy: Path) -> None:
    file = copy / "views" / "train" / "part-00001-of-00004.parquet"
    table = pq.read_table(file)
    column = pa.array([[b"none", b"none"]] * len(table), table.schema.field("views").type)
    pq.write_table(table.set_column(1, table.schema.field("views"), column), file)
    run_teachers(jobs, copy).refused(1, "part-00001-of-00004.parquet: is damaged or was changed")
    done = run_teachers(jobs, copy, "data.verify=false")
    done.refused(1, "part-00001-of-00004.parquet: Sample 7: a view of 4 bytes is no readable PNG")
    assert not list(copy.glob("teachers/*/_manifest.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["teacher.image.bgr=true"],
            r"bgr is False there, True is asked for\); make them: python jobs/cache_.* .*bgr=true",
        ),
        (["teacher.image.name=descriptor:16"], "has no features of descriptor:16 as configured"),
        (["teacher.image.name=source"], "teacher.image.name=source: .* has no image features of"),
        (["teacher.text.name=source"], "teacher.text.name=source: .* has no text features of"),
        (["teacher.image.cache=nowhere"], "teacher.image.cache=nowhere: no such folder"),
        (["teacher.image.mode=online", "teacher.image.cache=x"], "needs teacher.image.mode=cached"),
    ],
)
def test_features_that_are_not_there_are_refused(
    jobs: Jobs, copy: Path, cache: Path, options: list[str], message: str
) -> None:
    assert cache.is_dir()
    given = (f"data.path={copy}", "teacher.image.mode=cached", *options)
    jobs.pretrain(*QUICK, *given).refused(2, message)
    assert jobs.left_behind() == []


def test_the_cache_of_another_teacher_or_set_is_refused(
    jobs: Jobs, copy: Path, cache: Path, tiny_prepared: PreparedSet
) -> None:
    given = (*QUICK, "teacher.image.mode=cached", f"teacher.image.cache={cache}")
    jobs.pretrain(*given, f"data.path={copy}").done()
    other = jobs.pretrain(
        *given, f"data.path={copy}", "run.name=b", "teacher.image.sha256=" + 64 * "0"
    )
    other.refused(2, "it does not fit .teacher.sha256 is 1317247c30a3... there, 000000000000... is")
    record = json.loads((cache / "_manifest.json").read_text())
    record["identity"]["set"]["views_sha256"] = 64 * "1"
    (cache / "_manifest.json").write_text(json.dumps(record))
    jobs.pretrain(*given, f"data.path={copy}", "run.name=c").refused(2, "set.views_sha256 is 1111")


def test_a_damaged_or_partial_cache_is_refused(jobs: Jobs, copy: Path, cache: Path) -> None:
    given = (
        *QUICK,
        f"data.path={copy}",
        "teacher.image.mode=cached",
        f"teacher.image.cache={cache}",
    )
    shard = cache / "train" / "part-00000-of-00004.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    jobs.pretrain(*given).refused(1, "part-00000-of-00004.parquet: is damaged or was changed")
    record = json.loads((cache / "_manifest.json").read_text())
    record["splits"] = {"test": record["splits"]["train"]}
    (cache / "_manifest.json").write_text(json.dumps(record))
    jobs.pretrain(*given).refused(
        2, r"cache=.*: it does not fit \(it holds test, not 'train'\); .* make another: python"
    )
    (cache / "_manifest.json").unlink()
    jobs.pretrain(*given).refused(1, "is not a finished teacher cache")


# --- Foreign weights ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"base_model": {"bert.layer.0.weight": torch.zeros(2)}}, "another family of models"),
        ({"base_model": {"model.global_query": torch.zeros(2)}}, r"of ReCon\+\+, another family"),
        ({"base_model": os.system}, r"more than plain data \((posix|nt)\.system\) and is refused"),
        ({"epoch": 300}, "no weights found"),
        (b"cut off", "cannot be read as a weights file .* damaged or of another format"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(jobs: Jobs, content: object, message: str) -> None:
    path = jobs.folder / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    output = jobs.folder / "weights.safetensors"
    jobs.import_weights(f"input={path}", f"output={output}").refused(
        1, rf"weights\.pth: .*{message}"
    )
    assert jobs.left_behind() == []
    assert not output.exists()


# --- Published sets, exports and episodes ---------------------------------------------------------


def _cut_hdf5(folder: Path) -> None:
    with h5py.File(folder / "a_train.h5", "w") as file:
        file["data"] = np.stack([_cloud(i) for i in range(9)])
        file["label"] = np.zeros((9, 1), np.int64)
    content = (folder / "a_train.h5").read_bytes()
    (folder / "a_train.h5").write_bytes(content[: len(content) // 2])


PUBLISHED: list[tuple[str, Callable[[Path], object], str]] = [
    ("hdf5", _cut_hdf5, r"a_train\.h5: is damaged or cut off, or not an HDF5 file"),
    ("modelnet40", lambda folder: None, r"/in: expected modelnet40_train\.txt, \*\.dat, .*neither"),
]


@pytest.mark.parametrize(("source", "write", "message"), PUBLISHED, ids=[p[0] for p in PUBLISHED])
def test_a_published_set_that_is_incomplete_is_refused(
    jobs: Jobs, source: str, write: Callable[[Path], object], message: str
) -> None:
    folder = jobs.folder / "in"
    folder.mkdir()
    write(folder)
    target = jobs.folder / "set"
    jobs.prepare(f"source={source}", f"input={folder}", f"output={target}").refused(1, message)
    assert not (target / "_manifest.json").exists()


def test_two_files_with_one_id_are_refused_by_name(jobs: Jobs) -> None:
    clouds, table = _clouds(jobs.folder), jobs.folder / "table.csv"
    table.write_text("file,object_id\na/00.npy,x\nb/01.npy,x\n")
    jobs.custom(clouds, f"prepare.table={table}").refused(
        1, r"object id 'x' is used twice, by a/00\.npy and b/01\.npy; give each its own"
    )


def test_names_that_are_no_utf8_are_refused_with_the_way_out(jobs: Jobs) -> None:
    clouds = _clouds(jobs.folder)
    os.rename(clouds / "a" / "00.npy", os.fsencode(clouds / "a") + b"/caf\xe9.npy")  # noqa: PTH104
    jobs.custom(clouds).refused(
        1, r"^error: 'a/caf\\udce9\.npy': the name is not UTF-8 text, .* rename it, .*convmv"
    )


def test_a_mesh_without_area_and_clouds_of_other_sizes_are_left_out(jobs: Jobs) -> None:
    clouds = _clouds(jobs.folder, 40)
    (clouds / "a" / "line.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n")
    np.save(clouds / "b" / "few.npy", _cloud(0, 50))
    np.save(clouds / "b" / "more.npy", _cloud(0, 500))
    jobs.custom(clouds).done()
    reasons = {entry["file"]: entry["reason"] for entry in _quarantined(jobs.folder / "set")}
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


# --- Pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 2, r"data\.path=<prepared set> or files=\[a\.ply, \.\.\.\] must be given"),
        (("files=[cut.ply]",), 1, r"cut\.ply: cannot be read \("),
        (("files=[notes.docx]",), 1, r"notes\.docx: cannot read files of this type; use one of"),
        (("data.path=.", "shapes=[cup]"), 1, r"is no complete prepared set"),
        (
            ("files=[cut.ply]", "shapes=3"),
            2,
            r"shapes are of a prepared set; give data\.path=<folder",
        ),
        (("files=[cut.ply]", "init_from=cut.pth"), 1, r"cut\.pth: "),
    ],
)
def test_what_cannot_be_shown_is_refused(
    jobs: Jobs,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(jobs.folder)
    header = b"ply\nformat ascii 1.0\nelement vertex 9\nproperty float x\n"
    for name, content in (("cut.ply", header), ("notes.docx", b"x"), ("cut.pth", b"PK")):
        Path(name).write_bytes(content)
    before = jobs.left_behind()
    given = (f"init_from={finished}", *arguments)
    jobs.visualize(*given[any("init_from" in word for word in arguments) :]).refused(
        status, message
    )
    assert jobs.left_behind() == before


# --- Fine-tuning and evaluating classifiers ------------------------------------------------------


def _with_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change what the manifest of a copied set says."""
    path = folder / "_manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return folder


def _two_classes(manifest: dict[str, Any]) -> None:
    manifest["classes"] = manifest["classes"][:2]


def _other_names(manifest: dict[str, Any]) -> None:
    manifest["classes"] = ["chair", "sofa", "mug"]


def _of_episodes(manifest: dict[str, Any]) -> None:
    manifest["tables"] = {"episodes": {"file": "episodes.parquet"}}


def _empty_test(manifest: dict[str, Any]) -> None:
    manifest["splits"]["test"] |= {"rows": 0, "shards": []}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            _two_classes,
            (),
            r"data\.train_splits=train: .* has a shape of class 2, but the head has 2",
        ),
        (
            _empty_test,
            (),
            r"data\.test_split=test: it has no shapes in .*/copy; choose another split",
        ),
        (
            None,
            ("data.test_split=val",),
            r"data\.test_split=val: .* has the splits train, test; cho",
        ),
        (
            None,
            ("data.num_points=97",),
            r"data\.num_points=97: .* holds 96 points a shape; lower it",
        ),
        (
            None,
            ("protocol=reference",),
            r"data\.num_points=64: protocol=reference samples 1024, 204",
        ),
        (
            _of_episodes,
            (),
            r"data\.path=.*/copy: it holds the clouds of few-shot episodes, .*data\.episode=\[way",
        ),
        (None, ("model.num_groups=65",), r"model\.num_groups=65 is more than data\.num_points=64"),
        (None, ("model.num_heads=5",), r"model: .*embed_dim.*; change model"),
        (
            None,
            ("data.train_splits=[train, test]",),
            r"data\.test_split=test is one of data\.train",
        ),
    ],
)
def test_a_set_that_cannot_be_learned_is_refused(
    jobs: Jobs,
    copy: Path,
    change: Callable[[dict[str, Any]], None] | None,
    options: tuple[str, ...],
    message: str,
) -> None:
    path = copy if change is None else _with_manifest(copy, change)
    jobs.finetune(f"data.path={path}", *options).refused(2, message)
    assert jobs.left_behind() == []


def test_weights_that_cannot_start_a_classifier_are_refused(jobs: Jobs, copy: Path) -> None:
    start = f"data.path={copy}"
    missing = jobs.finetune(start, f"init_from={jobs.folder / 'none.pth'}")
    missing.refused(1, r"none\.pth: there is no such file or folder; give a run folder, a checkpo")
    unknown = jobs.finetune(start, "init_from=recon_pretrian")
    unknown.refused(1, r"recon_pretrian: there is no such file, run folder, or name of published")
    folder = jobs.folder / "empty"
    folder.mkdir()
    jobs.finetune(start, f"init_from={folder}").refused(
        1, r"empty: no checkpoint there; give a run"
    )
    assert jobs.left_behind() == []


def test_a_classifier_of_another_family_or_of_other_classes_is_refused(
    jobs: Jobs, copy: Path
) -> None:
    jobs.finetune(f"data.path={copy}").done()
    jobs.pretrain(*QUICK).done()
    before = jobs.left_behind()
    tuned, start = f"init_from={jobs.runs / 'tuned'}", f"data.path={copy}"
    plain = jobs.evaluate(f"init_from={jobs.runs / 'run'}", start)
    plain.refused(2, r"init_from: .*/run .* holds the weights of a recon model, which gives no cl")
    jobs.evaluate(start).refused(2, r"init_from: no classifier is named; give a run folder of jobs")
    jobs.evaluate(tuned, start, "data.split=val").refused(2, r"data\.split=val: .* has the splits")
    _with_manifest(copy, _other_names)
    other = jobs.evaluate(tuned, start)
    other.refused(
        2, r"init_from: class 1 of .*/tuned .* is 'lamp', that of .*/copy is 'sofa'; give"
    )
    _with_manifest(copy, _two_classes)
    fewer = jobs.evaluate(tuned, start)
    fewer.refused(2, r"init_from: .* tells 3 classes apart, .*/copy has 2; give the classifier of")
    assert jobs.left_behind() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("validation.kind=zeroshot", "teacher.text.name=null"),
            r"validation\.kind=zeroshot: it n",
        ),
        (
            ("validation.path=nowhere",),
            r"validation\.path=nowhere: no such folder; give the folder",
        ),
        (
            ("validation.test_split=val",),
            r"validation\.test_split=val: .* has no shapes in it, only",
        ),
        (
            ("validation.test_split=train",),
            r"validation\.test_split=train: it is trained on; choose",
        ),
    ],
)
def test_a_validation_that_cannot_be_done_is_refused(
    jobs: Jobs, options: tuple[str, ...], message: str
) -> None:
    jobs.pretrain(*QUICK, "validation.every_epochs=1", *options).refused(2, message)
    assert jobs.left_behind() == []


# --- Zero-shot, probes, part segmentation ---------------------------------------------------------


def run_downstream(jobs: Jobs, name: str, *arguments: object) -> Outcome:
    given = [f"run.storage={jobs.runs}", "run.name=down", "cluster.workers=0"]
    given += ["data.num_points=64", *map(str, arguments)]
    return jobs._outcome(run_job(name, given))


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """Weights of a pre-training with a text teacher only, eight numbers wide."""
    sizes = {"embed_dim": 24, "depth": 1, "num_heads": 2, "num_groups": 8, "group_size": 8}
    architecture = {**sizes, "decoder_depth": 1, "image_dim": None, "text_dim": 8}
    model = Recon(**architecture)
    path = tmp_path / "pre.safetensors"
    save_weights(path, model.state_dict(), kind="recon", architecture=architecture)
    return path


@pytest.mark.parametrize(
    ("name", "options", "status", "message"),
    [
        ("zeroshot", (), 1, r"zeroshot\.kind=full: .*pre\.safetensors has no image projection"),
        (
            "zeroshot",
            ("zeroshot.kind=text", "zeroshot.classes={mugg: cup}"),
            2,
            r"zeroshot\.classes\.mugg: .* no such class, did you mean 'mug'\?",
        ),
        (
            "zeroshot",
            ("zeroshot.kind=text", "zeroshot.splits=[val]"),
            2,
            r"zeroshot\.splits=val: .* has the splits train, test",
        ),
        (
            "zeroshot",
            ("zeroshot.kind=text", "teacher.text.name=table:none.npz"),
            2,
            r"teacher\.text: Teacher 'table:none\.npz': there is no file",
        ),
        (
            "zeroshot",
            ("zeroshot.kind=text", "teacher.text.name=descriptor:16"),
            2,
            "its features are 16 wide, the text projection .* gives 8",
        ),
        ("linear_probe", ("probe.knn=[1,25]",), 2, r"probe\.knn: 25 neighbors, .* 24 labeled"),
        ("embed", ("init_from=null",), 2, r"init_from=<run folder or file of weights> must be"),
        ("embed", ("data.path=null",), 2, r"data\.path=<prepared set> or files=\[a\.ply"),
        ("embed", ("embed.splits=[val]",), 2, r"embed\.splits=val: .* has the splits train, test"),
        ("embed", ("data.num_points=97",), 2, r"data\.num_points=97: .* holds 96 points a shape"),
        ("embed", ("data.num_points=7",), 2, r"data\.num_points=7 is too few for the model's 8"),
        ("embed", ("files=[absent.ply]",), 1, r"absent\.ply: cannot be read \(No such file"),
        ("retrieve", ("init_from=null",), 2, r"init_from=<run folder or file of weights> must be"),
        ("retrieve", ("query=absent.ply",), 2, r"query=absent\.ply: no such file; give a picture"),
        ("retrieve", ("query=[]",), 2, r"query \(command line\): expected text"),
        (
            "retrieve",
            ("teacher.text.name=descriptor:16",),
            2,
            "its features are 16 wide, the text projection .* gives 8",
        ),
        (
            "retrieve",
            ("teacher.text.name=null", "teacher.image.name=null"),
            2,
            r"teacher\.image\.name and teacher\.text\.name are both null; name one",
        ),
        ("partseg", (), 2, r"data\.path=.*: its shapes have no part labels"),
        ("partseg", ("test=only", "init_from=null"), 2, "test=only needs init_from=<weights"),
    ],
)
def test_what_a_downstream_job_cannot_do_is_refused(
    jobs: Jobs,
    tiny_prepared: PreparedSet,
    encoder: Path,
    name: str,
    options: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    given = (f"init_from={encoder}", f"data.path={tiny_prepared.path}", *options)
    run_downstream(jobs, name, *given).refused(status, message)
    assert jobs.left_behind() == []


def test_features_of_a_damaged_file_or_of_two_towers_are_refused(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, encoder: Path
) -> None:
    monkeypatch.chdir(jobs.folder)
    Path("cut.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 9\nproperty float x\n")
    refused = run_downstream(jobs, "embed", f"init_from={encoder}", "files=[cut.ply]")
    refused.refused(1, r"cut\.ply: cannot be read \(")
    sizes = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    towers = jobs.folder / "towers.safetensors"
    save_weights(towers, TwoTower(**sizes).state_dict(), kind="twotower", architecture=sizes)
    refused = run_downstream(jobs, "embed", f"init_from={towers}", "files=[cut.ply]")
    refused.refused(1, r"holds the weights of a twotower model, which cannot start a")


def test_part_segmentation_refuses_other_sets_splits_and_weights(
    jobs: Jobs, tiny_parts: PreparedSet, encoder: Path
) -> None:
    path = f"data.path={tiny_parts.path}"
    run_downstream(jobs, "partseg", path, "data.test_split=none").refused(
        2, r"data\.test_split=none: it has no such split in .* \(it has train 6, val 3, test 5\)"
    )
    only = (path, "test=only", f"init_from={encoder}")
    run_downstream(jobs, "partseg", *only).refused(1, "holds a recon model, and test=only scores")
    assert jobs.left_behind() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("data.validation_fraction=1",), r"data\.validation_fraction .* found 1"),
        (("data.validation_fraction=0.1",), r"needs a name for what is held out"),
        (
            ("data.validation_fraction=0.1", "data.validation_split=val", "cluster.workers=1"),
            r"is held out in one process; set cluster\.workers=0",
        ),
        (
            ("data.validation_fraction=0.1", "data.validation_split=v", "data.train_splits=[a,b]"),
            r"divides one training split",
        ),
        (
            ("data.validation_fraction=0.1", "data.validation_split=test", "data.test_split=val"),
            r"data\.validation_split=test: .* has a split of this name already",
        ),
    ],
)
def test_what_cannot_be_held_out_is_refused(
    jobs: Jobs, tiny_prepared: PreparedSet, options: tuple[str, ...], message: str
) -> None:
    jobs.finetune(f"data.path={tiny_prepared.path}", *options).refused(2, message)
    assert jobs.left_behind() == []


# --- Sweeps and few-shot runs ---------------------------------------------------------------------

WRONG_SWEEPS: list[tuple[str, str]] = [
    ("sweep.space={optim.lrr: {grid: [1]}}", r"sweep\.space\.optim\.lrr .*did you mean optim\.lr"),
    ("sweep.space={optim.lr: {grid: []}}", r"sweep\.space .*optim\.lr: grid is empty; give"),
    ("sweep.space={optim.lr: {uniform: [-1, 1]}}", r"optim\.lr .*a number > 0, found -1"),
    ("sweep.space={optim.lr: {uniform: [2, 1]}}", r"optim\.lr: uniform expects the lower bound"),
    ("sweep.scheduler=hyperband", r"sweep\.scheduler .*one of none, asha, median, found 'hyper"),
    (
        "sweep.scheduler=asha",
        r"sweep: scheduler=asha stops trials, which biases mean and deviation",
    ),
    ("config.optim.lrr=1", r"optim\.lrr \(command line\): unknown key; did you mean optim\.lr\?"),
    ("job=train", r"job \(command line\): expected one of pretrain, finetune, .* found 'train'"),
    ("config.data.path=absent", r"config\.data\.path=absent: no such folder"),
    ("cluster.workers=2", r"cluster\.workers=2: the trials are the workers here"),
]


@pytest.mark.parametrize(("argument", "message"), WRONG_SWEEPS, ids=[c[0] for c in WRONG_SWEEPS])
def test_a_wrong_sweep_is_refused_before_its_first_trial(
    jobs: Jobs, tiny_prepared: PreparedSet, argument: str, message: str
) -> None:
    jobs.sweep(f"config.data.path={tiny_prepared.path}", "sweep.seeds=2", argument).refused(
        2, message
    )
    assert jobs.left_behind() == []


def test_a_failed_trial_fails_the_sweep_by_name(jobs: Jobs, tiny_prepared: PreparedSet) -> None:
    outcome = jobs.sweep(
        f"config.data.path={tiny_prepared.path}", "config.data.num_points=64",
        "config.model.preset=nano", "sweep.space={model.num_heads: {grid: [5, 7]}}",
    )  # fmt: skip
    assert outcome.status == 1
    assert len(outcome.complaints()) == 1
    assert re.search(r"2 of 2 trials failed \(000_num_heads-5, 001_num_", outcome.complaints()[0])
    assert outcome.out.rstrip().endswith("result.json")


def test_few_shot_runs_need_episodes(jobs: Jobs, tiny_prepared: PreparedSet) -> None:
    given = (f"data.path={tiny_prepared.path}", "data.num_points=64", "cluster.workers=0")
    jobs.fewshot(*given).refused(1, r"data\.episodes=\S*[^:\s]: holds no few-shot episodes; make")
    jobs.fewshot(*given, "data.episodes=absent").refused(
        2, r"data\.episodes=absent: no such folder"
    )
    jobs.fewshot(*given, "fewshot.folds=[]").refused(
        2, r"way, shot or folds is empty; give numbers"
    )
    assert jobs.left_behind() == []


PAPER = ROOT / "configs" / "reproduce" / "paper.yaml"
WRONG_TABLES: list[tuple[tuple[object, ...], str]] = [
    ((), r"init_from=<run folder or file of weights> must be given, or a section pretrain"),
    (("init_from=a",), r"rows\.modelnet40_1k is not configured; start from configs/reproduce/"),
    ((PAPER, "reproduce.budget=0"), r"reproduce\.budget \(command line\): expected .*found 0"),
    ((PAPER, "reproduce.budget=tiny"), r"reproduce\.budget .*full, smoke.*found 'tiny'"),
    ((PAPER, "reproduce.rows=[svn]"), r"reproduce\.rows .*'svn' is no row; the rows are obj_bg"),
    ((PAPER, "rows.svn.probe.svm_c=1"), r"rows\.svn.*unknown key; did you mean rows\.svm"),
    ((PAPER, "rows.svm.probe.svm_cc=1"), r"rows\.svm\.probe\.svm_cc .*did you mean probe\.svm_c\?"),
    ((PAPER, "rows.svm.probe.svm_c=-1"), r"rows\.svm\.probe\.svm_c .*a number > 0, found -1"),
    ((PAPER, "rows.svm={include: [absent.yaml]}"), r"absent\.yaml: no such file"),
    (
        (PAPER, "rows.svm.cluster.workers=2"),
        r"rows\.svm\.cluster\.workers: every run",
    ),
    ((PAPER, "cluster.workers=2"), r"cluster\.workers=2: the trials are the workers here"),
    (
        (PAPER, "init_from=null", "pretrain.data.path=absent"),
        r"pretrain\.data\.path=absent: no",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_TABLES)
def test_a_wrong_table_is_refused_before_its_first_run(
    jobs: Jobs, arguments: tuple[object, ...], message: str
) -> None:
    jobs.reproduce(*arguments).refused(2, message)
    assert jobs.left_behind() == []


def test_a_table_of_which_everything_is_missing_says_so(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(jobs.folder)
    outcome = jobs.reproduce(PAPER)
    outcome.done()
    assert outcome.out.count("skipped") >= 21
    assert "sets.modelnet40.path=datasets/modelnet40: no such folder; see jobs/prep" in outcome.out


def test_a_damaged_set_fails_its_row_by_name(jobs: Jobs, copy: Path) -> None:
    shard = next((copy / "geometry" / "train").iterdir())
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\0\0")
    tiny = "teacher: {image: {name: descriptor}, text: {name: descriptor}}, train.epochs: 1"
    outcome = jobs.reproduce(
        PAPER, "init_from=null", f"pretrain={{data.path: {copy}, {tiny}}}", "svm_from=null",
        f"sets.modelnet40.path={copy}", "reproduce.rows=[svm]",
    )  # fmt: skip
    assert outcome.status == 1
    assert len(outcome.complaints()) == 1
    assert shard.name in outcome.complaints()[0]
