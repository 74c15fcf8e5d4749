"""CLIP image and text towers, through open_clip."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recon_ray.errors import TeacherNameError
from recon_ray.teachers.activation import choose_architecture
from recon_ray.teachers.protocol import (
    Precision,
    Statistics,
    TextTeacher,
    TowerImageTeacher,
    Triple,
)
from recon_ray.teachers.specification import Specification
from recon_ray.teachers.weights_file import find_weights_file, load_strictly, read_weights


class OpenClipTextTeacher(TextTeacher):
    """The text tower of a CLIP model; the feature is the projected embedding at the end token."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        **constants: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**constants)
        self.model = model
        self.tokenizer = tokenizer
        self.freeze()

    def tokenize(self, texts: list[str]) -> Tensor:
        """Return (T, context) int64 tokens on the CPU; long texts are cut before the end token."""
        return self.tokenizer(texts)

    def forward(self, texts: list[str]) -> Tensor:
        """Return features (T, dim) of texts."""
        return self.model.encode_text(self.tokenize(texts).to(self.device))  # type: ignore[operator]


def create_open_clip_image_teacher(
    specification: Specification,
    *,
    sha256: str | None,
    statistics: Statistics,
    precision: Precision,
) -> TowerImageTeacher:
    """Load an image tower; see :func:`recon_ray.teachers.create.create_image_teacher`.

    The feature is the projected embedding, not normalized.
    """
    clip = _load_clip(specification, sha256)
    visual = clip.model.visual
    assert isinstance(visual, nn.Module)
    size: Any = visual.image_size
    return TowerImageTeacher(
        visual,
        statistics=statistics,
        identity=clip.identity,
        dim=clip.dim,
        image_size=int(size[0] if isinstance(size, (tuple, list)) else size),
        mean=clip.mean,
        std=clip.std,
        precision=precision,
    )


def create_open_clip_text_teacher(
    specification: Specification, *, sha256: str | None, precision: Precision
) -> OpenClipTextTeacher:
    """Load a text tower; see :func:`recon_ray.teachers.create.create_text_teacher`."""
    import open_clip

    clip = _load_clip(specification, sha256)
    del clip.model.visual
    tokenizer = open_clip.get_tokenizer(clip.arch)
    return OpenClipTextTeacher(
        clip.model, tokenizer, identity=clip.identity, dim=clip.dim, precision=precision
    )


class _Clip(NamedTuple):
    """A whole CLIP model with its weights, and the constants of its training images."""

    model: nn.Module
    arch: str
    identity: dict[str, str]
    dim: int
    mean: Triple
    std: Triple


def _load_clip(specification: Specification, sha256: str | None) -> _Clip:
    """Find, hash, check and load the weights that a specification names, in float32.

    Raises:
        TeacherError: If architecture, tag or file are unknown, the hub cannot be reached, the hash
            is not the pinned one, the weights belong to another architecture, or nothing tells
            which activation their model uses.
    """
    import open_clip

    arch = specification.arch
    config = open_clip.get_model_config(arch)
    if config is None:
        raise TeacherNameError(
            f"Teacher {specification.text!r}: open_clip has no architecture {arch!r}; see "
            "open_clip.list_models() for the names."
        )
    tags = open_clip.list_pretrained_tags_by_model(arch)
    default = "openai" if "openai" in tags else None

    def download(tag: str) -> Path:
        return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(arch, tag)))

    file = find_weights_file(specification, tags, default, download, sha256=sha256)
    published = open_clip.get_pretrained_cfg(arch, file.tag)
    weights = read_weights(file.path)
    known = bool(published.get("quick_gelu")) if published else None
    quick = f"{arch}-quickgelu"
    arch = choose_architecture(
        specification,
        file,
        quick=quick if quick in open_clip.list_models() else None,
        known=weights.is_archive or known,
    )
    config["quick_gelu"] = config.get("quick_gelu", False) or arch == quick
    constants = published or open_clip.get_pretrained_cfg(specification.arch, next(iter(tags), ""))
    model, name = _build_random(config), f"open_clip:{arch}"
    load_strictly(model, _to_open_clip(model, weights.state), name=name, path=f"({file.tag})")
    return _Clip(
        model,
        arch,
        {"name": name, "tag": file.tag, "sha256": file.sha256},
        config["embed_dim"],
        constants.get("mean") or open_clip.OPENAI_DATASET_MEAN,
        constants.get("std") or open_clip.OPENAI_DATASET_STD,
    )


def _build_random(config: Mapping[str, Any]) -> nn.Module:
    """Build the model class of an architecture.

    open_clip's own factory would warn that nothing was loaded, although it is loaded afterwards.
    """
    from open_clip import CLIP, CoCa, CustomTextCLIP

    settings = copy.deepcopy(dict(config))
    text, vision = settings["text_cfg"], settings["vision_cfg"]
    is_custom = settings.pop("custom_text", False) or "hf_model_name" in text
    # No weights of single towers from the hub: all come from the one pinned file.
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if not is_custom:
        return CLIP(**settings)
    return (CoCa if "multimodal_cfg" in settings else CustomTextCLIP)(**settings)


def _to_open_clip(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of foreign CLIP weights to the model's own names."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = dict(convert_state_dict(model, dict(state)))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = dict(convert_to_custom_text_state_dict(state))
    # Left by old versions of the transformers package.
    state.pop("text.transformer.embeddings.position_ids", None)
    for name in ("logit_scale", "logit_bias"):  # not used by a teacher, but part of the file
        own = getattr(model, name, None)
        if isinstance(own, Tensor):
            state[name] = torch.as_tensor(state.get(name, own.detach())).reshape(own.shape)
    return state
