"""CLIP image and text towers, through open_clip."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recon_ray.errors import TeacherError, TeacherNameError
from recon_ray.teachers.protocol import (
    ImageTeacher,
    Precision,
    Statistics,
    TextTeacher,
    Triple,
    choose_statistics,
)
from recon_ray.teachers.specification import Source, Specification, parse_source
from recon_ray.teachers.weights_file import (
    WAY_OUT,
    Weights,
    WeightsFile,
    check_pin,
    fetching,
    identify,
    load_strictly,
    read_weights,
)

logger = logging.getLogger(__name__)

QUICK_SUFFIX = "-quickgelu"


class OpenClipImageTeacher(ImageTeacher):
    """The image tower of a CLIP model; the feature is the projected, un-normalized embedding."""

    def __init__(
        self,
        visual: nn.Module,
        *,
        identity: Mapping[str, str],
        dim: int,
        image_size: int,
        mean: Triple,
        std: Triple,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(
            identity=identity,
            dim=dim,
            image_size=image_size,
            mean=mean,
            std=std,
            precision=precision,
        )
        self.visual = visual
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, dim) of normalized images (B, 3, H, W)."""
        return self.visual(images)


class OpenClipTextTeacher(TextTeacher):
    """The text tower of a CLIP model; the feature is the projected embedding at the end token."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        identity: Mapping[str, str],
        dim: int,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(identity=identity, dim=dim, precision=precision)
        self.model = model
        self.tokenizer = tokenizer
        self.freeze()

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token numbers (T, context) int64 on the CPU; long texts are cut before the end token."""
        return self.tokenizer(texts)

    def forward(self, texts: list[str]) -> Tensor:
        """Features (T, dim) of texts."""
        return self.model.encode_text(self.tokenize(texts).to(self.device))  # type: ignore[operator]


@dataclass(frozen=True)
class ClipWeights:
    """An architecture with the weights found for it.

    Attributes:
        arch: Architecture, with the activation that the weights were trained with.
        config: open_clip's description of the architecture.
        state: The weights.
        identity: Name, tag and hash.
        mean: Channel means of the training images.
        std: Channel deviations of the training images.
    """

    arch: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    identity: dict[str, str]
    mean: Triple
    std: Triple


def create_open_clip_image_teacher(
    specification: Specification,
    *,
    sha256: str | None,
    statistics: Statistics,
    precision: Precision,
) -> OpenClipImageTeacher:
    """Load an image tower; see :func:`recon_ray.teachers.create.create_image_teacher`."""
    weights = find_weights(specification, sha256)
    visual = build_model(weights).visual
    assert isinstance(visual, nn.Module)
    mean, std = choose_statistics(statistics, weights.mean, weights.std)
    return OpenClipImageTeacher(
        visual,
        identity=weights.identity,
        dim=weights.config["embed_dim"],
        image_size=_square(visual.image_size),
        mean=mean,
        std=std,
        precision=precision,
    )


def create_open_clip_text_teacher(
    specification: Specification, *, sha256: str | None, precision: Precision
) -> OpenClipTextTeacher:
    """Load a text tower; see :func:`recon_ray.teachers.create.create_text_teacher`."""
    import open_clip

    weights = find_weights(specification, sha256)
    model = build_model(weights)
    del model.visual
    return OpenClipTextTeacher(
        model,
        open_clip.get_tokenizer(weights.arch),
        identity=weights.identity,
        dim=weights.config["embed_dim"],
        precision=precision,
    )


def find_weights(specification: Specification, sha256: str | None) -> ClipWeights:
    """Find, hash, check and read the weights that a specification names.

    Raises:
        TeacherError: If architecture, tag or file are unknown, the hub cannot be reached, or the
            hash is not the pinned one.
    """
    import open_clip

    config = open_clip.get_model_config(specification.arch)
    if config is None:
        raise TeacherNameError(
            f"Teacher {specification.text!r}: open_clip has no architecture "
            f"{specification.arch!r}; see open_clip.list_models() for the names."
        )
    tags = open_clip.list_pretrained_tags_by_model(specification.arch)
    source = parse_source(specification, tags)
    file = _find_file(specification, source, tags)
    check_pin(specification.name, file.sha256, sha256)
    published = open_clip.get_pretrained_cfg(specification.arch, source.tag or file.tag)
    weights = read_weights(file.path)
    arch = specification.arch
    if not config.get("quick_gelu") and _needs_quick_gelu(published, weights, file):
        arch = _correct_activation(arch, file)
        config["quick_gelu"] = True
    return ClipWeights(
        arch=arch,
        config=config,
        state=weights.state,
        identity={"name": f"open_clip:{arch}", "tag": file.tag, "sha256": file.sha256},
        mean=published.get("mean") or open_clip.OPENAI_DATASET_MEAN,
        std=published.get("std") or open_clip.OPENAI_DATASET_STD,
    )


def build_model(weights: ClipWeights) -> nn.Module:
    """Build a CLIP model in float32 and load its weights, which must fit exactly.

    Raises:
        TeacherError: If the weights belong to another architecture.
    """
    model = _build_random(weights.config)
    state = _to_open_clip(model, weights.state)
    load_strictly(model, state, name=weights.identity["name"], path=f"({weights.identity['tag']})")
    return model


def _find_file(specification: Specification, source: Source, tags: list[str]) -> WeightsFile:
    """The local file, or the published one from the hub (or its cache on this machine)."""
    if source.file is not None:
        return identify(source.file, source.tag or source.file.name)
    tag = source.tag or ("openai" if "openai" in tags else None)
    if tag is None:
        raise TeacherNameError(
            f"Teacher {specification.text!r} names no weights; add a tag "
            f"({', '.join(tags) or 'none is published'}) or a file."
        )
    return identify(_download(specification, tag), tag)


def _download(specification: Specification, tag: str) -> Path:
    import open_clip

    published = open_clip.get_pretrained_cfg(specification.arch, tag)
    try:
        with fetching(specification.text):
            return Path(open_clip.download_pretrained(published))
    except Exception as error:  # whatever hub, proxy or disk raise, the way out is one
        raise TeacherError(
            f"Teacher {specification.text!r}: the weights {tag!r} could not be fetched "
            f"({type(error).__name__}); {WAY_OUT}."
        ) from error


def _build_random(config: Mapping[str, Any]) -> nn.Module:
    """Build the model class that an architecture asks for.

    open_clip's own factory would warn here that nothing was loaded, which is not what happens.
    """
    from open_clip import CLIP, CoCa, CustomTextCLIP

    settings = copy.deepcopy(dict(config))
    text, vision = settings["text_cfg"], settings["vision_cfg"]
    is_custom = settings.pop("custom_text", False) or "hf_model_name" in text
    # The hub is never asked for weights of single towers: all come from the one pinned file.
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    if not is_custom:
        return CLIP(**settings)
    return (CoCa if "multimodal_cfg" in settings else CustomTextCLIP)(**settings)


def _needs_quick_gelu(published: Mapping[str, Any], weights: Weights, file: WeightsFile) -> bool:
    """Tell whether weights were trained with QuickGELU: by tag, by file format, or by known hash."""
    by_tag = bool(published.get("quick_gelu"))
    return by_tag or weights.is_archive or file.sha256 in _openai_hashes()


def _openai_hashes() -> set[str]:
    """Hashes of OpenAI's files; their download addresses contain them."""
    import open_clip

    names = [name for name, tag in open_clip.list_pretrained() if tag == "openai"]
    urls = [open_clip.get_pretrained_cfg(name, "openai").get("url", "") for name in names]
    return {parts[-2] for url in urls if len(parts := url.split("/")) > 1}


def _correct_activation(arch: str, file: WeightsFile) -> str:
    """Name the architecture with QuickGELU that belongs to ``arch``, and say so."""
    import open_clip

    logger.warning(
        "The weights %s were trained with QuickGELU, which %s does not use: %s is built with "
        "QuickGELU instead; name the architecture %s%s to silence this.",
        file.tag,
        arch,
        arch,
        arch,
        QUICK_SUFFIX,
    )
    corrected = arch + QUICK_SUFFIX
    return corrected if corrected in open_clip.list_models() else arch


def _to_open_clip(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the spellings in which CLIP weights circulate to the model's own."""
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


def _square(size: object) -> int:
    return int(size[0]) if isinstance(size, (tuple, list)) else int(size)  # type: ignore[call-overload]
