"""Small CLIP architectures with random weights, so that real loading code runs without a hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

TINY = "recon-test-clip"
TINY_QUICK = f"{TINY}-quickgelu"
TINY_CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16
    },
    "text_cfg": {
        "context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], nn.Module]:
    """A function that builds a small random CLIP of an architecture open_clip now knows."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("architectures")
    for name, quick in ((TINY, False), (TINY_QUICK, True)):
        config = {**TINY_CONFIG, "quick_gelu": quick} if quick else TINY_CONFIG
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)

    def build(name: str) -> nn.Module:
        torch.manual_seed(5)
        # Large weights, so that the two activations give clearly different features.
        model = open_clip.CLIP(**open_clip.get_model_config(name)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return model

    return build


@pytest.fixture(scope="session")
def clip_file(
    tiny_clip: Callable[[str], nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Weights of the small CLIP as safetensors."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    state = {k: v.contiguous() for k, v in tiny_clip(TINY_QUICK).state_dict().items()}
    save_file(state, path)
    return path


@pytest.fixture
def openai_tag(tiny_clip: Callable, monkeypatch: pytest.MonkeyPatch) -> str:
    """Pretend that OpenAI published weights of both small architectures; return the tag."""
    from open_clip import pretrained

    published = {"url": "", "hf_hub": "nobody/nothing/", "quick_gelu": True}
    published |= {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    for name in (TINY, TINY_QUICK):
        monkeypatch.setitem(pretrained._PRETRAINED, name, {"openai": published})
    return "openai"
