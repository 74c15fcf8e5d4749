"""Zero-shot, probes, part segmentation, embedding and retrieval that are refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from job_runs import Jobs
from job_samples import save_model
from PIL import Image

from recon_ray.data.format.prepared import PreparedSet
from recon_ray.teachers.prompts import NUM_PROMPTS

TEXT = "zeroshot zeroshot.kind=text"
FULL = "zeroshot zeroshot.kind=full init_from={full} teacher.text.name=descriptor:8"
PARTS = "partseg data.path={parts} model.num_groups=8"
BOTH = "retrieve init_from={full}"
TEACHER = "teacher.text.name=descriptor"
TEXTS, PICTURES = "teacher.text.name", "teacher.image.name"
T, P = re.escape(TEXTS), re.escape(PICTURES)  # in messages
TABLE = f"{TEXT} teacher.text.name=table:{{texts.npz}}"
SPLITS = "it has train 6, val 3, test 5"
WIDER = "its features are 16 wide, the"

REFUSED: list[tuple[str, int, str]] = [
    (
        "zeroshot zeroshot.kind=full",
        1,
        r"zeroshot\.kind=full: .*text\.\S+ has no image proj.*zeroshot\.kind=text",
    ),
    (f"{TEXT} zeroshot.classes.mugg=cup", 2, r"\.mugg: .* no such class, did you mean 'mug'\?"),
    (f"{TEXT} zeroshot.classes=[chair,lamp,cup]", 2, r"1 classes of .* not in the list \('mug'"),
    (f"{TEXT} zeroshot.splits=[val]", 2, r"zeroshot\.splits=val: .* has the splits train, test"),
    (f"{TEXT} teacher.text.name=table:none.npz", 2, r"'table:none\.npz': there is no file"),
    (f"{TEXT} {TEACHER}:16", 2, f"{WIDER} text projection .* gives 8"),
    (f"{TABLE} zeroshot.classes.mug=cup", 1, "has no features of the text 'cup"),
    (f"{FULL} {TEACHER}:16", 2, f"{WIDER} image .* gives 8"),
    (f"{FULL} data.num_points=1024", 2, r"data\.num_points=1024: .* holds 96 points"),
    (f"{FULL} protocol=reference", 2, r"data\.num_points=64: protocol=reference samples 1024"),
    ("zeroshot zeroshot.kind=full init_from={wide}", 1, r"are 12 \(image\) and 8 \(text\) wide"),
    ("linear_probe probe.knn=[1,25]", 2, r"probe\.knn: 25 neighbors, .* 24 labeled"),
    ("linear_probe protocol=reference", 2, "leaves out what does not fill a batch of 128: all 24"),
    ("linear_probe probe.test_split=none", 2, r"test_split=none: .* has the splits train, test"),
    ("embed init_from=null", 2, r"init_from=<run folder or file of weights> must be"),
    ("embed data.path=null", 2, r"data\.path=<prepared set> or files=\[a\.ply"),
    ("embed embed.splits=[val]", 2, r"embed\.splits=val: .* has the splits train, test"),
    ("embed data.num_points=97", 2, r"data\.num_points=97: .* holds 96 points a shape"),
    ("embed data.num_points=7", 2, r"data\.num_points=7 is too few for the model's 8"),
    ("embed files=[absent.ply]", 1, r"absent\.ply: cannot be read \(No such file"),
    ("embed init_from={towers}", 1, "weights of a twotower model, which cannot start a"),
    ("retrieve init_from=null", 2, r"init_from=<run folder or file of weights> must be"),
    ("retrieve init_from={bare}", 1, r"bare\.safetensors has no projection into the"),
    ("retrieve query=absent.ply", 2, r"query=absent\.ply: no such file; give a picture"),
    ("retrieve query={notes.md}", 2, r"ends in \.md is neither a picture \(\.png"),
    ("retrieve query=[]", 2, r"query \(command line\): expected text"),
    ("retrieve query={good.png}", 2, r"good\.png: .*text\.safetensors has no image proj"),
    (f"{BOTH} query={{broken.png}}", 1, r"broken\.png: is not a readable PNG or JPEG"),
    (f"{BOTH} query={{few.npy}}", 1, r"few\.npy: 5 points are too few for the model's 8"),
    (f"{BOTH} query=words {TEXTS}=null", 2, rf"{T}=null: the query 'words' needs a teacher"),
    (
        f"{BOTH} query={{good.png}} {PICTURES}=source",
        2,
        rf"{P}=source: the query '\S*good\.png' needs a teacher",
    ),
    (f"{BOTH} query=words {TEACHER}:16", 2, rf"{T}=descriptor:16: its features are 16 wide"),
    (f"{BOTH} teacher.text.name=source", 2, r"teacher\.text\.name=source: texts are compared"),
    (f"{BOTH} {TEACHER}:16", 2, f"{WIDER} text projection .* gives 8"),
    (
        f"{BOTH} {TEACHER}:8 {PICTURES}=descriptor:16",
        2,
        f"{P}=descriptor:16: {WIDER} image projection",
    ),
    (f"retrieve {TEXTS}=null {PICTURES}=null", 2, f"{P} and {T} are both null; name one"),
    (f"{BOTH} retrieval.splits=[val]", 2, r"retrieval\.splits=val: .* only in train"),
    ("partseg", 2, r"data\.path=.*: its shapes have no part labels"),
    ("partseg test=only init_from=null", 2, "test=only needs init_from=<weights"),
    (f"{PARTS} test=only", 1, "holds a recon model, and test=only scores"),
    (
        f"{PARTS} data.test_split=none",
        2,
        rf"data\.test_split=none: it has no such split in .* \({SPLITS}\)",
    ),
    (f"{PARTS} data.train_splits=[train,none]", 2, f"no such split in .*{SPLITS}"),
    (f"{PARTS} train.global_batch_size=1", 2, r"train\.global_batch_size=1: .* one shape at a"),
    (f"{PARTS} train.micro_batch_size=1", 2, r"train\.micro_batch_size=1: .* one shape at a"),
]


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory, tiny_prepared: PreparedSet, tiny_parts: PreparedSet
) -> dict[str, Path]:
    """Make weights with and without projections, 8 wide, and files, some of them damaged."""
    folder = tmp_path_factory.mktemp("downstream")
    widths = {"text": (None, 8), "full": (8, 8), "wide": (12, 8), "bare": (None, None)}
    for name, (image, text) in widths.items():
        sizes = {"depth": 1, "decoder_depth": 1, "image_dim": image, "text_dim": text}
        save_model(folder / f"{name}.safetensors", **sizes)
    save_model(folder / "towers.safetensors", "twotower", depth=1)
    bank = np.random.default_rng(0).standard_normal((3, NUM_PROMPTS, 8))
    np.savez(folder / "texts.npz", classes=np.array(["chair", "lamp", "mug"]), text=bank)
    np.save(folder / "few.npy", bank[0, :5, :3])
    Image.new("RGB", (40, 40)).save(folder / "good.png")
    cut = b"ply\nformat ascii 1.0\nelement vertex 9\nproperty float x\n"
    for name, content in {"cut.ply": cut, "notes.md": b"a", "broken.png": b"\x89PNG"}.items():
        (folder / name).write_bytes(content)
    files = {path.name.removesuffix(".safetensors"): path for path in folder.iterdir()}
    return {**files, "set": tiny_prepared.path, "parts": tiny_parts.path}


@pytest.mark.parametrize(("command", "status", "message"), REFUSED, ids=[c[0] for c in REFUSED])
def test_what_a_downstream_job_cannot_do_is_refused(
    jobs: Jobs, places: dict[str, Path], command: str, status: int, message: str
) -> None:
    for name, place in places.items():
        command = command.replace(f"{{{name}}}", str(place))
    job, *options = command.split()
    given = (f"init_from={places['text']}", f"data.path={places['set']}", *options)
    jobs.run(job, *given).refused(status, message)
    assert jobs.left_behind() == []


def test_a_damaged_file_ends_the_features_by_name(jobs: Jobs, places: dict[str, Path]) -> None:
    refused = jobs.run("embed", f"init_from={places['text']}", f"files=[{places['cut.ply']}]")
    refused.refused(1, r"cut\.ply: cannot be read \(")
