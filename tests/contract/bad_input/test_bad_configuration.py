"""Options, YAML files and clusters that a job refuses before it writes anything."""

from __future__ import annotations

import re

import pytest
import ray
import torch
from job_runs import QUICK, Jobs

TWO_TOWERS = "model.kind=twotower eval.enabled=false"
VALIDATED = " ".join((*QUICK, "validation.every_epochs=1"))

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
    ("cluster.workers=[3,2]", r"cluster: workers=\[3, 2\]: min is more than max; give \[2, 3\]$"),
    ("cluster.workers=[3,9]", r"train\.global_batch_size=8 has no shape for some of 9 workers"),
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
        r"data\.train_splits=val: .* has the splits train, test; choose one of them$",
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
    ("resume=/absent/step-1", r"resume=/absent/step-1: no checkpoint there; give a run"),
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
    # several together
    (
        "teacher.image.augment=none teacher.image.augment_on=device",
        r"augment_on=device needs teacher\.image\.augment=reference, found .*augment=none",
    ),
    (
        "cluster.workers=2 data.mode=stream data.limit=8",
        r"data\.limit=8 needs data\.mode=shared, found data\.mode=stream",
    ),
    (
        "cluster.workers=1 data.mode=cached data.limit=8",
        r"data\.limit=8 needs data\.mode=shared, found data\.mode=cached",
    ),
    (f"{TWO_TOWERS} teacher.text.name=null", r"from both teachers, found teacher\.text\.name=null"),
    (f"{TWO_TOWERS} loss.self_contrast=true", r"has no class token for loss\.self_contrast=true"),
    (f"{TWO_TOWERS} validation.every_epochs=1", r"validation\.every_epochs=1 probes features of R"),
    (f"{VALIDATED} validation.kind=zeroshot teacher.text.name=null", r"kind=zeroshot: it needs"),
    (f"{VALIDATED} validation.path=nowhere", r"validation\.path=nowhere: no such folder; give the"),
    (f"{VALIDATED} validation.test_split=val", r"test_split=val: .* has no shapes in it, only"),
    (f"{VALIDATED} validation.test_split=train", r"test_split=train: it is trained on; choose"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS, ids=[a for a, _ in WRONG_OPTIONS])
def test_wrong_options_are_refused_before_any_file(jobs: Jobs, options: str, message: str) -> None:
    if options == "runtime.device=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has what is asked for")
    jobs.pretrain(*options.split()).refused(2, message)
    assert jobs.left_behind() == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("runtime.ops_backend=pointnet2_ops", "pointnet2_ops is not installed"),
        (
            f"teacher.image.sha256={'0' * 64}",
            r"teacher\.image: .*its weights have sha256 1317.*, but 0000.* is pinned;",
        ),
        (
            "teacher.text.name=open_clip:ViT-B-32:{file}",
            r"teacher\.text: Teacher weights .*weights\.pt cannot be read as",
        ),
    ],
)
def test_what_an_option_names_is_of_no_use(jobs: Jobs, option: str, message: str) -> None:
    file = jobs.folder / "weights.pt"
    file.write_bytes(b"no weights")
    jobs.pretrain(option.format(file=file)).refused(1, message)
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
def test_an_unreadable_yaml_file_is_named(jobs: Jobs, content: bytes, message: str) -> None:
    path = jobs.folder / "bad.yaml"
    path.write_bytes(content)
    jobs.pretrain(path).refused(2, message)
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


def test_limits_leave_shapes_that_are_counted_or_too_few(jobs: Jobs) -> None:
    outcome = jobs.pretrain("--dry-run", "data.limit=16")
    outcome.done()
    assert re.search(r"training samples +16\nsteps an epoch +2\n", outcome.out)
    jobs.pretrain("eval.limit=1", "train.steps=1").refused(2, r"eval\.limit=1: that leaves 1 clas")


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
            "cluster.workers=4",
            r"cluster\.workers=4: they reserve 4 CPUs \(1 each\), the cluster has 2; lower",
        ),
        (
            "cluster.workers=2 data.mode=stream",
            r"data\.mode=stream needs one free CPU .* 2 workers x 1 CPUs leave 0 of 2: set",
        ),
        (
            "cluster.workers=1 runtime.device=cuda",
            r"runtime\.device=cuda: the cluster has 0 GPUs for 1 workers",
        ),
    ],
)
def test_what_the_cluster_cannot_hold_is_refused(jobs: Jobs, options: str, message: str) -> None:
    jobs.pretrain("cluster.address=auto", *options.split()).refused(2, message)
    assert jobs.left_behind() == []
