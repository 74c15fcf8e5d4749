from __future__ import annotations

import hashlib
import logging

import pytest
import torch
from safetensors.torch import save_file

from recon_ray.errors import TeacherError
from recon_ray.teachers import timm_towers
from recon_ray.teachers.create import create_image_teacher, create_text_teacher

timm = pytest.importorskip("timm")

ARCH = "test_vit"
PRELOGITS = f"{ARCH}_in21k_prelogits"


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(3)
    return timm.create_model(ARCH, num_classes=11).eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def save(state, path):
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


@pytest.fixture
def published(backbone, tmp_path):
    return save(backbone.state_dict(), tmp_path / "published.safetensors")


@pytest.fixture
def original(backbone, tmp_path):
    """The layout of the original checkpoint: classifier and pre-logits layer beside the ViT."""
    generator = torch.Generator().manual_seed(1)
    state = {
        **backbone.state_dict(),
        "pre_logits.fc.weight": 0.1 * torch.randn(64, 64, generator=generator),
        "pre_logits.fc.bias": 0.1 * torch.randn(64, generator=generator),
    }
    return save(state, tmp_path / "original.safetensors")


def pooled(backbone, images, mean, std):
    images = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        return backbone.forward_head(backbone.forward_features(images), pre_logits=True)


def test_the_feature_is_the_pooled_output_without_the_classifier(backbone, published, images):
    teacher = create_image_teacher(f"timm:{ARCH}:{published}")
    settings = timm.get_pretrained_cfg(ARCH)
    assert (teacher.dim, teacher.image_size) == (64, 160)
    assert (teacher.mean, teacher.std) == (settings.mean, settings.std)
    expected = pooled(backbone, images, settings.mean, settings.std)
    # The same float32 operations: equal up to the rounding of the normalization.
    torch.testing.assert_close(teacher.encode(images), expected, rtol=1e-5, atol=1e-5)
    assert teacher.identity["sha256"] == hashlib.sha256(published.read_bytes()).hexdigest()


def test_the_original_vit_ends_in_its_prelogits_layer(backbone, original, images):
    teacher = create_image_teacher(f"timm:{PRELOGITS}:{original}")
    half = (0.5, 0.5, 0.5)
    assert (teacher.mean, teacher.std) == (half, half)
    token = pooled(backbone, images, half, half)
    layer = teacher.backbone.pre_logits.fc
    expected = torch.tanh(token @ layer.weight.T + layer.bias)
    torch.testing.assert_close(teacher.encode(images), expected, rtol=1e-5, atol=1e-5)
    assert teacher.identity["name"] == f"timm:{PRELOGITS}"


def test_prelogits_weights_need_the_prelogits_name(original):
    with pytest.raises(TeacherError, match=f"{PRELOGITS}"):
        create_image_teacher(f"timm:{ARCH}:{original}")


def test_the_prelogits_name_needs_prelogits_weights(published):
    with pytest.raises(TeacherError, match="no pre-logits layer"):
        create_image_teacher(f"timm:{PRELOGITS}:{published}")


def test_ambiguous_names_and_text_teachers_are_refused():
    with pytest.raises(TeacherError, match=r"in21k_prelogits:<file>.*augreg_in21k"):
        create_image_teacher("timm:vit_base_patch16_224_in21k")
    with pytest.raises(TeacherError, match="image encoders only"):
        create_text_teacher(f"timm:{ARCH}")


def test_a_tag_is_fetched_through_the_hub(published, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(published)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    tag = timm.get_pretrained_cfg(ARCH).tag
    teacher = create_image_teacher(f"timm:{ARCH}:{tag}")
    assert asked == [(f"timm/{ARCH}.{tag}", "model.safetensors")]
    assert teacher.identity["tag"] == tag
    assert create_image_teacher(f"timm:{ARCH}").identity == teacher.identity


def test_an_unreachable_hub_names_the_way_out(monkeypatch, caplog):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def fail(repository, file):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    caplog.set_level("INFO")
    with pytest.raises(TeacherError, match=r"ConnectionError.*local file.*'descriptor'"):
        create_image_teacher(f"timm:{ARCH}")
    assert {record.name.partition(".")[0] for record in caplog.records} == {"recon_ray"}
    assert f"fetching timm:{ARCH}" in caplog.text


def test_the_original_file_is_taken_from_the_cache_or_fetched(original, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    asked = []

    def fail(url, path, hash_prefix, progress):
        asked.append((url.rsplit("/", 1)[1], hash_prefix))
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    spec = "timm:vit_base_patch16_224_in21k_prelogits:original"
    with pytest.raises(TeacherError, match="could not be fetched"):
        create_image_teacher(spec)
    assert asked == [("jx_vit_base_patch16_224_in21k-e5005f0a.pth", "e5005f0a")]
    cached = tmp_path / "hub" / "checkpoints" / timm_towers.ORIGINAL_FILE
    cached.write_bytes(b"found")
    with pytest.raises(TeacherError, match=r"e5005f0a\.pth cannot be read"):
        create_image_teacher(spec)
    assert len(asked) == 1


def test_missing_tensors_are_refused(backbone, tmp_path):
    state = {k: v for k, v in backbone.state_dict().items() if k != "blocks.0.norm1.bias"}
    path = save(state, tmp_path / "w.safetensors")
    with pytest.raises(TeacherError, match=r"1 tensors missing.*blocks\.0\.norm1\.bias"):
        create_image_teacher(f"timm:{ARCH}:{path}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:vit_gigantic_patch1", "no architecture 'vit_gigantic_patch1'"),
        (f"timm:{ARCH}:unheard_of", "neither a published tag"),
        (f"timm:{PRELOGITS}", "names no weights"),
    ],
)
def test_bad_names_are_one_sentence(spec, message):
    with pytest.raises(TeacherError, match=message):
        create_image_teacher(spec)


#: Input constants and the note by which timm tells that weights are of a model with QuickGELU.
CLIP = {
    "url": "",
    "input_size": (3, 32, 32),
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}
NATIVE = {"notes": ("natively QuickGELU, use quickgelu model variant for original results",)}
NAMES = ("vit_recon_clip_32", "vit_recon_clip_quickgelu_32")


def clip_tower(activation):
    def build(pretrained=False, **options):
        sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
        return timm.models.VisionTransformer(**sizes, act_layer=activation, **options)

    return build


@pytest.fixture
def clip_tags(monkeypatch):
    """Two architectures that timm knows as it knows CLIP's, and tags of the first one."""
    towers = dict(zip(NAMES, map(clip_tower, ("gelu", "quick_gelu")), strict=True))
    tags = {"openai": NATIVE, "laion": {}, "other": {"mean": (0.1, 0.2, 0.3)}}
    settings = {
        f"{NAMES[0]}.{tag}": timm.models.PretrainedCfg(tag=tag, **CLIP, **more)
        for tag, more in tags.items()
    }
    settings |= dict.fromkeys(NAMES, settings[f"{NAMES[0]}.laion"])
    monkeypatch.setattr(timm, "create_model", lambda name, **options: towers[name](**options))
    monkeypatch.setattr(timm, "is_model", towers.__contains__)
    monkeypatch.setattr(timm, "list_pretrained", lambda pattern: list(settings)[:3])
    monkeypatch.setattr(timm, "get_pretrained_cfg", settings.get)


@pytest.fixture
def clip_tower_file(tmp_path):
    torch.manual_seed(4)
    model = clip_tower("quick_gelu")(num_classes=0)
    return save(
        {k: v + 0.3 * torch.randn_like(v) for k, v in model.state_dict().items()},
        tmp_path / "w.safetensors",
    )


@pytest.mark.usefixtures("clip_tags")
def test_weights_of_quickgelu_are_never_run_with_gelu(clip_tower_file, caplog):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, quick = (f"timm:{name}" for name in NAMES)
    expected = create_image_teacher(f"{quick}:{clip_tower_file}")
    assert caplog.text == ""
    found = create_image_teacher(f"{plain}:openai:{clip_tower_file}")
    assert f"name the architecture {NAMES[1]}" in caplog.text
    assert torch.equal(found.encode(images), expected.encode(images))
    assert found.identity == {**expected.identity, "tag": "openai"}
    with pytest.raises(TeacherError, match=f"set {quick}:.* or {plain}:gelu:.*, or put the publ"):
        create_image_teacher(f"{plain}:{clip_tower_file}")
    for stated in ("gelu", "laion"):
        teacher = create_image_teacher(f"{plain}:{stated}:{clip_tower_file}")
        assert teacher.identity["name"] == plain
        assert (teacher.encode(images) - expected.encode(images)).abs().max() > 1e-3
    assert "weights of this architecture are published with different normalization" in caplog.text


def test_timm_notes_the_activation_of_openais_weights():
    for arch in ("vit_base_patch32_clip_224", "vit_large_patch14_clip_336"):
        assert any("QuickGELU" in note for note in timm.get_pretrained_cfg(f"{arch}.openai").notes)
        assert timm.is_model(arch.replace("_clip_", "_clip_quickgelu_"))
