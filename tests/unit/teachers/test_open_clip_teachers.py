from __future__ import annotations

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from recon_ray.errors import TeacherError
from recon_ray.teachers.create import create_image_teacher, create_text_teacher
from recon_ray.teachers.protocol import IMAGENET_MEAN, IMAGENET_STD

TINY = "recon-test-clip"
TINY_QUICK = f"{TINY}-quickgelu"
TEXTS = ["A chair.", "A 3D model of a lamp with white background."]
# The same float32 operations in the same order: only the batch of rounding in matmul may differ.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def spec(clip_file):
    return f"open_clip:{TINY_QUICK}:{clip_file}"


def normalized(images, mean, std):
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_image_features_are_those_of_the_whole_model(tiny_clip, spec, images):
    open_clip = pytest.importorskip("open_clip")
    teacher = create_image_teacher(spec)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    with torch.no_grad():
        expected = tiny_clip(TINY_QUICK).encode_image(normalized(images, mean, std))
    found = teacher.encode(images)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert (teacher.dim, teacher.image_size) == (16, 32)
    assert teacher.mean == tuple(mean)


def test_text_features_are_those_of_the_whole_model(tiny_clip, spec):
    teacher = create_text_teacher(spec)
    with torch.no_grad():
        expected = tiny_clip(TINY_QUICK).encode_text(teacher.tokenize(TEXTS))
    torch.testing.assert_close(teacher.encode(TEXTS), expected, **TOLERANCE)
    assert teacher.dim == 16
    assert teacher.encode([]).shape == (0, 16)


def test_teachers_are_frozen_and_take_uint8_images_of_one_size(spec):
    teacher = create_image_teacher(spec)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(teacher.encode(images), teacher.encode(images / 255), **TOLERANCE)
    holder = nn.ModuleList([teacher]).train()
    assert holder.training
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\).*\(B, 3, 32, 32\)"):
        teacher.encode(torch.zeros(1, 3, 16, 16))


def test_each_teacher_keeps_only_its_own_tower(tiny_clip, spec):
    whole = sum(p.numel() for p in tiny_clip(TINY_QUICK).parameters())
    image = create_image_teacher(spec)
    text = create_text_teacher(spec)
    count = {t: sum(p.numel() for p in t.parameters()) for t in (image, text)}
    scale = 1  # logit_scale stays with the text tower
    assert count[image] + count[text] == whole
    assert count[image] == sum(p.numel() for p in tiny_clip(TINY_QUICK).visual.parameters())
    assert count[text] > scale


def test_imagenet_statistics_are_the_references(spec, images):
    own = create_image_teacher(spec)
    reference = create_image_teacher(spec, statistics="imagenet")
    assert (reference.mean, reference.std) == (IMAGENET_MEAN, IMAGENET_STD)
    expected = own(normalized(images, IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(reference.encode(images), expected, **TOLERANCE)


def test_precision_is_the_teachers_own_or_that_of_the_step(spec, images):
    teacher = create_image_teacher(spec)
    expected = teacher.encode(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher.encode(images), expected)
    half = create_image_teacher(spec, precision="bf16").encode(images)
    assert half.dtype == torch.float32
    assert not torch.equal(half, expected)
    # bfloat16 keeps 8 bits: a per cent of the features' size after two blocks.
    assert (half - expected).abs().max() < 0.03 * expected.abs().max()
    teacher = create_image_teacher(spec, precision="step")
    assert torch.equal(teacher.encode(images), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = teacher.encode(images)
    assert torch.equal(found, half)


def test_the_hash_of_the_file_is_in_the_identity_and_checked(clip_file, spec):
    digest = hashlib.sha256(clip_file.read_bytes()).hexdigest()
    name = f"open_clip:{TINY_QUICK}"
    identity = {"name": name, "tag": "tiny.safetensors", "sha256": digest}
    assert create_image_teacher(spec).identity == identity
    assert create_image_teacher(spec, sha256=digest.upper()).dim == 16
    pinned = "0" * 64
    with pytest.raises(TeacherError, match=f"{digest}.*{pinned}"):
        create_text_teacher(spec, sha256=pinned)


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_torch_files_are_read_like_safetensors(tmp_path, clip_file, images, suffix, spec):
    state = load_file(clip_file)
    wrapped = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / f"w{suffix}")
    found = create_image_teacher(f"open_clip:{TINY_QUICK}:{tmp_path / f'w{suffix}'}")
    expected = create_image_teacher(spec)
    assert torch.equal(found.encode(images), expected.encode(images))


@pytest.fixture
def archive_file(tiny_clip, tmp_path):
    """What OpenAI publishes: TorchScript, half-precision weights and three extras."""

    class Stub(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    root = Stub()
    state = tiny_clip(TINY_QUICK).state_dict()
    state |= {n: torch.tensor(7) for n in ("input_resolution", "context_length", "vocab_size")}
    for key, value in state.items():
        module = root
        *parents, leaf = key.split(".")
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, Stub())
            module = getattr(module, parent)
        half = value.half() if value.is_floating_point() else value
        module.register_buffer(leaf, half)
    path = tmp_path / "archive.pt"
    torch.jit.save(torch.jit.script(root), str(path))
    return path


def test_openai_archives_are_read_and_imply_quick_gelu(archive_file, spec, images, caplog):
    teacher = create_image_teacher(f"open_clip:{TINY}:{archive_file}")
    assert "QuickGELU" in caplog.text
    assert teacher.identity["name"] == f"open_clip:{TINY_QUICK}"
    assert all(p.dtype == torch.float32 for p in teacher.parameters())
    expected = create_image_teacher(spec).encode(images)
    # Weights rounded to half precision: about 1e-3 relative.
    assert (teacher.encode(images) - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_stated_openai_tag_corrects_the_activation(openai_tag, clip_file, images, caplog):
    expected = create_image_teacher(f"open_clip:{TINY_QUICK}:{openai_tag}:{clip_file}")
    assert caplog.text == ""
    found = create_image_teacher(f"open_clip:{TINY}:{openai_tag}:{clip_file}")
    assert f"name the architecture {TINY_QUICK}" in caplog.text
    assert torch.equal(found.encode(images), expected.encode(images))
    assert found.identity == expected.identity
    assert found.identity["tag"] == "openai"
    assert found.mean == (0.1, 0.2, 0.3)


def test_a_file_that_does_not_record_its_activation_has_to_be_stated(
    clip_file, images, spec, caplog
):
    for create in (create_image_teacher, create_text_teacher):
        with pytest.raises(TeacherError) as caught:
            create(f"open_clip:{TINY}:{clip_file}")
        assert f"set {spec} or open_clip:{TINY}:gelu:{clip_file}, or put" in str(caught.value)
        assert "\n" not in str(caught.value)
    plain = create_image_teacher(f"open_clip:{TINY}:gelu:{clip_file}")
    quick = create_image_teacher(spec)
    difference = (plain.encode(images) - quick.encode(images)).abs().max()
    assert difference > 1e-3 * quick.encode(images).abs().max()
    assert plain.identity == {**quick.identity, "name": f"open_clip:{TINY}"}
    assert caplog.text == ""
    with pytest.raises(TeacherError, match="has none; leave it out"):
        create_image_teacher(f"open_clip:{TINY_QUICK}:gelu:{clip_file}")


def test_a_stated_tag_of_plain_gelu_is_enough(openai_tag, clip_file, monkeypatch):
    from open_clip import pretrained

    monkeypatch.setitem(pretrained._PRETRAINED[TINY], "laion", {"url": "", "quick_gelu": False})
    found = create_text_teacher(f"open_clip:{TINY}:laion:{clip_file}")
    expected = create_text_teacher(f"open_clip:{TINY}:gelu:{clip_file}")
    assert torch.equal(found.encode(TEXTS), expected.encode(TEXTS))
    assert found.identity["name"] == f"open_clip:{TINY}"


def test_a_file_is_normalized_as_its_architecture_is_published(openai_tag, clip_file):
    assert create_image_teacher(f"open_clip:{TINY_QUICK}:{clip_file}").mean == (0.1, 0.2, 0.3)


def test_a_tag_is_fetched_through_the_hub_and_hashed(openai_tag, clip_file, monkeypatch):
    open_clip = pytest.importorskip("open_clip")
    asked = []
    monkeypatch.setattr(open_clip, "download_pretrained", lambda c: asked.append(c) or clip_file)
    teacher = create_text_teacher(f"open_clip:{TINY_QUICK}")  # no tag: openai where published
    assert asked[0]["hf_hub"] == "nobody/nothing/"
    assert teacher.identity["tag"] == "openai"
    assert teacher.identity["sha256"] == hashlib.sha256(clip_file.read_bytes()).hexdigest()


def test_an_unreachable_hub_is_one_sentence_with_the_way_out(openai_tag, monkeypatch):
    open_clip = pytest.importorskip("open_clip")

    def fail(config):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    with pytest.raises(TeacherError) as caught:
        create_image_teacher(f"open_clip:{TINY_QUICK}:{openai_tag}")
    message = str(caught.value)
    assert "ConnectionError" in message
    assert "local file" in message
    assert "'descriptor'" in message
    assert "\n" not in message


def test_weights_of_another_architecture_are_refused(tmp_path, clip_file):
    state = load_file(clip_file)
    del state["visual.proj"]
    state["visual.ln_pre.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(TeacherError, match="1 tensors missing, 0 unknown, 1 of another shape"):
        create_image_teacher(f"open_clip:{TINY_QUICK}:{tmp_path / 'w.safetensors'}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (f"open_clip:{TINY}", "names no weights"),
        (f"open_clip:{TINY}:laion", "neither a published tag"),
        (f"open_clip:{TINY}:gone/w.pt", "no file gone/w.pt"),
        (f"open_clip:{TINY_QUICK}:w.safetensors", "no file w.safetensors"),
        ("open_clip:ViT-Z-99:openai", "no architecture 'ViT-Z-99'"),
    ],
)
def test_bad_sources_name_what_is_wrong(tiny_clip, spec, message):
    with pytest.raises(TeacherError, match=message):
        create_image_teacher(spec)


def test_a_tag_with_a_missing_file_names_the_file(openai_tag):
    with pytest.raises(TeacherError, match=r"no file gone\.pt"):
        create_image_teacher(f"open_clip:{TINY}:openai:gone.pt")


@pytest.mark.cuda
def test_features_on_cuda_match_the_cpu(spec, images):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image = create_image_teacher(spec)
    text = create_text_teacher(spec)
    expected = image.encode(images), text.encode(TEXTS)
    found = image.cuda().encode(images), text.cuda().encode(TEXTS)
    for a, b in zip(found, expected, strict=True):
        assert a.is_cuda
        # Another order of summation, and TF32 where it is switched on.
        torch.testing.assert_close(a.cpu(), b, rtol=1e-2, atol=1e-2)
