from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from recon_ray.errors import TeacherError
from recon_ray.teachers.bank import text_bank
from recon_ray.teachers.create import create_image_teacher, create_text_teacher
from recon_ray.teachers.descriptor import split_prompt

CATEGORIES = [
    "airplane", "bench", "bottle", "bowl", "car", "chair", "lamp", "mug", "rocket", "sofa",
    "table", "vase",
]  # fmt: skip


def shape_image(kind, *, size=64, shift=0, color=(0.8, 0.4, 0.2)):
    """A colored square, disc or bar on white."""
    grid = torch.arange(size).float() / size - 0.5
    y, x = torch.meshgrid(grid, grid - shift / size, indexing="ij")
    inside = {
        "square": (x.abs() < 0.2) & (y.abs() < 0.2),
        "disc": x * x + y * y < 0.09,
        "bar": (x.abs() < 0.06) & (y.abs() < 0.4),
    }[kind]
    return torch.where(inside, torch.tensor(color).view(3, 1, 1), torch.tensor(1.0))


def test_every_prompt_is_closest_to_its_own_category():
    teacher = create_text_teacher("descriptor")
    bank = text_bank(teacher, CATEGORIES)
    assert bank.shape == (len(CATEGORIES), 60, 256)
    classifier = F.normalize(bank.sum(dim=1), dim=1)
    cosine = F.normalize(bank, dim=2) @ classifier.T
    expected = torch.arange(len(CATEGORIES)).unsqueeze(1).expand(-1, 60)
    assert torch.equal(cosine.argmax(dim=2), expected)
    own = cosine.gather(2, expected.unsqueeze(2))
    # The name dominates: prompts of a category stay together, categories lie apart.
    assert own.min() > 0.95
    between = classifier @ classifier.T - torch.eye(len(CATEGORIES))
    assert between.max() < 0.6
    assert between.mean() < 0.15
    bank = text_bank(create_text_teacher("descriptor"), ["chair"])[0]
    assert len(torch.unique(bank, dim=0)) == 60


def test_features_have_length_eight_and_the_stated_width():
    text = create_text_teacher("descriptor:100").encode(["a red chair", "A lamp."])
    image = create_image_teacher("descriptor:100").encode(shape_image("disc").unsqueeze(0))
    assert text.shape == (2, 100)
    assert image.shape == (1, 100)
    for features in (text, image):
        torch.testing.assert_close(features.norm(dim=1), torch.full((len(features),), 8.0))


def test_images_of_one_shape_are_closer_whatever_their_size_and_content():
    teacher = create_image_teacher("descriptor")
    views = [shape_image(k, shift=s) for k in ("square", "disc", "bar") for s in (-1, 1)]
    features = F.normalize(teacher.encode(torch.stack(views)), dim=1)
    cosine = features @ features.T - 2 * torch.eye(6)
    assert torch.equal(cosine.argmax(dim=1), torch.tensor([1, 0, 3, 2, 5, 4]))
    small = teacher.encode(shape_image("square").unsqueeze(0))
    large = teacher.encode(
        shape_image("square").repeat_interleave(3, 1).repeat_interleave(3, 2).unsqueeze(0)
    )
    # Averages of equal pixels, up to float32 rounding.
    torch.testing.assert_close(large, small, rtol=1e-4, atol=1e-4)
    assert torch.equal(teacher.encode(torch.zeros(2, 3, 64, 64)), torch.zeros(2, 256))
    assert teacher.encode(torch.full((1, 3, 64, 64), 0.5)).isfinite().all()
    text = create_text_teacher("descriptor").encode(["", "chair"])
    assert torch.equal(text[0], torch.zeros(256))


def test_features_are_the_same_in_another_process():
    code = (
        "from recon_ray.teachers.create import create_image_teacher, create_text_teacher;"
        "import torch;"
        "x = torch.arange(3 * 64 * 64).reshape(1, 3, 64, 64) % 97 / 97.0;"
        "i, t = create_image_teacher('descriptor:8'), create_text_teacher('descriptor:8');"
        "print(i.identity['sha256'], i.encode(x).tolist() + t.encode(['a chair']).tolist())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    digest, features = process.stdout.split(" ", 1)
    image, text = create_image_teacher("descriptor:8"), create_text_teacher("descriptor:8")
    assert digest == image.identity["sha256"]
    x = torch.arange(3 * 64 * 64).reshape(1, 3, 64, 64) % 97 / 97.0
    expected = torch.cat([image.encode(x), text.encode(["a chair"])])
    # The number of threads may change the order of summation.
    torch.testing.assert_close(torch.tensor(json.loads(features)), expected)


def test_identity_names_kind_and_width_and_is_pinned():
    teacher = create_image_teacher("descriptor:64")
    assert teacher.identity["name"] == "descriptor"
    assert teacher.identity["tag"] == "image-64-v1"
    assert create_image_teacher("descriptor:64", sha256=teacher.identity["sha256"]).dim == 64
    with pytest.raises(TeacherError, match="is pinned"):
        create_text_teacher("descriptor:64", sha256=teacher.identity["sha256"])


def test_the_log_says_once_that_it_is_a_stand_in(caplog):
    with caplog.at_level("INFO", logger="recon_ray"):
        for _ in range(2):  # to check the configuration, and to train
            create_text_teacher("descriptor:77")
    assert [record.getMessage() for record in caplog.records] == [
        "text teacher descriptor: 77 wide, a weight-free stand-in: not for published numbers"
    ]


@pytest.mark.parametrize(
    "spec", ["descriptor:", "descriptor:wide", "descriptor:4", "descriptor:8:x"]
)
def test_bad_widths_are_refused(spec):
    if spec == "descriptor:":
        assert create_text_teacher(spec).dim == 256
        return
    with pytest.raises(TeacherError, match="width of 8 or more"):
        create_text_teacher(spec)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chair.", (".", "chair")),
        ("A 3D model of a chair with white background.",
         ("A 3D model of a  with white background.", "chair")),
        ("A chair with black context.", ("A  with black context.", "chair")),
        ("a red chair", ("", "a red chair")),
        ("", ("", "")),
    ],
)  # fmt: skip
def test_prompts_are_taken_apart(text, expected):
    assert split_prompt(text) == expected
