"""Teachers against stored outputs of the reference's encoders, with weights made by a formula."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_packs import Pack, find_packs
from safetensors.torch import save_file

from recon_ray.errors import TeacherNameError
from recon_ray.teachers.create import create_image_teacher as create_image
from recon_ray.teachers.create import create_text_teacher as create_text
from recon_ray.teachers.open_clip_towers import OpenClipTextTeacher
from recon_ray.teachers.protocol import ImageTeacher, TextTeacher

# float32 rounding through 12 blocks reaches about 1e-6 of the features' size; GELU in place of
# QuickGELU changes them by 5e-3.
RELATIVE_TOLERANCE = 1e-4
VIT_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large"}


PACKS = [pack for pack in find_packs() if pack.kind in ("clip", "vit")]
CASES = [pytest.param(p, a, id=f"{p.name}-{a}") for p in PACKS for a in p.names]
CLIP_PACKS = [pytest.param(p, id=p.name) for p in PACKS if p.kind == "clip"]


def images(pack: Pack) -> torch.Tensor:
    """Draw the images of a pack by the formula in its description."""
    seed, shape = re.search(
        r"default_rng\((\d+)\)\.standard_normal\(\(([\d, ]+)\)\)", pack.meta["image"]
    ).groups()
    size = tuple(int(number) for number in shape.split(","))
    drawn = np.random.default_rng(int(seed)).standard_normal(size)
    return torch.from_numpy(drawn.astype(np.float32))


def clip_architecture(pack: Pack) -> str:
    """The open_clip architecture with QuickGELU that has the pack's shapes."""
    open_clip = pytest.importorskip("open_clip")
    shapes = pack.shapes
    wanted = (
        shapes["visual.proj"][1],
        shapes["visual.conv1.weight"][0],
        shapes["visual.conv1.weight"][2],
        len([key for key in shapes if re.fullmatch(r"visual.*resblocks\.\d+\.ln_1\.bias", key)]),
        math.isqrt(shapes["visual.positional_embedding"][0] - 1),
    )
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision = config["vision_cfg"]
        if not name.endswith("-quickgelu") or not vision.get("patch_size"):
            continue
        patch = vision["patch_size"]
        found = (config["embed_dim"], vision["width"], patch, vision["layers"])
        if (*found, vision["image_size"] // patch) == wanted:
            return name
    pytest.skip(f"open_clip has no architecture with the shapes of pack {pack.name}")


def vit_architecture(pack: Pack) -> str:
    width, _, patch, _ = pack.shapes["patch_embed.proj.weight"]
    side = patch * math.isqrt(pack.shapes["pos_embed"][1] - 1)
    return f"vit_{VIT_SIZES[width]}_patch{patch}_{side}_in21k_prelogits"


class Zoo:
    """Teachers of the packs, loaded once from one file of weights a pack."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: dict[tuple[str, str], ImageTeacher | TextTeacher] = {}

    def file(self, pack: Pack) -> Path:
        path = self.folder / f"{pack.name}.safetensors"
        if not path.exists():
            save_file(pack.weights(), path)
        return path

    def image(self, pack: Pack) -> ImageTeacher:
        key = (pack.name, "image")
        if key not in self.loaded:
            family = "open_clip" if pack.kind == "clip" else "timm"
            arch = clip_architecture(pack) if pack.kind == "clip" else vit_architecture(pack)
            self.loaded[key] = create_image(f"{family}:{arch}:{self.file(pack)}")
        return self.loaded[key]

    def text(self, pack: Pack) -> OpenClipTextTeacher:
        key = (pack.name, "text")
        if key not in self.loaded:
            arch = clip_architecture(pack)
            self.loaded[key] = create_text(f"open_clip:{arch}:{self.file(pack)}")
        return self.loaded[key]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    zoo = Zoo(tmp_path_factory.mktemp("teachers"))
    yield zoo
    for path in zoo.folder.iterdir():  # hundreds of megabytes, which pytest would keep
        path.unlink()


def relative_error(found: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(found.detach().numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("pack", "array"), CASES)
def test_teacher_reproduces_the_reference(pack: Pack, array: str, zoo: Zoo) -> None:
    expected = pack.array(array)
    if array == "tokens":
        tokens = zoo.text(pack).tokenize(pack.meta["prompts"]).numpy()
        np.testing.assert_array_equal(tokens, expected)
    elif array == "text_feature":
        found = zoo.text(pack).encode(pack.meta["prompts"])
        assert relative_error(found, expected) < RELATIVE_TOLERANCE
    elif array == "image_feature":
        with torch.no_grad():
            found = zoo.image(pack)(images(pack))
        assert relative_error(found, expected) < RELATIVE_TOLERANCE
    else:
        pytest.skip(f"no teacher produces the array {array}")


@pytest.mark.parametrize("pack", CLIP_PACKS)
def test_plain_gelu_does_not_match(pack: Pack, zoo: Zoo) -> None:
    arch = clip_architecture(pack).removesuffix("-quickgelu")
    with pytest.raises(TeacherNameError, match=f"{arch}-quickgelu:.* or open_clip:{arch}:gelu:"):
        create_image(f"open_clip:{arch}:{zoo.file(pack)}")
    teacher = create_image(f"open_clip:{arch}:gelu:{zoo.file(pack)}")
    with torch.no_grad():
        found = teacher(images(pack))
    assert relative_error(found, pack.array("image_feature")) > 10 * RELATIVE_TOLERANCE


def test_the_shipped_packs_are_found() -> None:
    assert {pack.kind for pack in PACKS} >= {"clip", "vit"}
