"""Image encoders from timm, and the original ImageNet-21k ViT with its pre-logits layer."""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recon_ray.errors import TeacherError, TeacherNameError
from recon_ray.teachers.protocol import (
    ImageTeacher,
    Precision,
    Statistics,
    Triple,
    choose_statistics,
)
from recon_ray.teachers.specification import Source, Specification, parse_source
from recon_ray.teachers.weights_file import (
    WAY_OUT,
    WeightsFile,
    check_pin,
    fetching,
    identify,
    load_strictly,
    read_weights,
)

logger = logging.getLogger(__name__)

PRELOGITS_SUFFIX = "_in21k_prelogits"
# The name under which timm 0.4.5 published it; today's timm reads it as other (AugReg) weights.
AMBIGUOUS_SUFFIX = "_in21k"
ORIGINAL_TAG = "original"
ORIGINAL_FILE = "jx_vit_base_patch16_224_in21k-e5005f0a.pth"
ORIGINAL_URL = (
    "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/"
    + ORIGINAL_FILE
)
ORIGINAL_HASH_PREFIX = "e5005f0a"
HALF: Triple = (0.5, 0.5, 0.5)  # mean and deviation of the original ViT's training images


class TimmImageTeacher(ImageTeacher):
    """A timm backbone; the feature is its pooled output before the classifier."""

    def __init__(
        self,
        backbone: nn.Module,
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
        self.backbone = backbone
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, dim) of normalized images (B, 3, H, W)."""
        return self.backbone(images)


class PrelogitsVit(nn.Module):
    """A ViT whose class token passes a linear layer and a tanh, as timm built it up to 0.4.

    The published ReCon was trained towards this feature. Parameter names are those of the original
    checkpoint: the backbone's own, and ``pre_logits.fc``.
    """

    def __init__(self, arch: str) -> None:
        super().__init__()
        import timm

        # LayerNorm eps 1e-6, class token after the final norm: timm's defaults for this family.
        self.backbone = timm.create_model(arch, pretrained=False, num_classes=0)
        self.dim = int(self.backbone.num_features)
        layer = nn.Linear(self.dim, self.dim)
        self.pre_logits = nn.Sequential(OrderedDict([("fc", layer), ("act", nn.Tanh())]))

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) in (-1, 1) of normalized images (B, 3, H, W)."""
        return self.pre_logits(self.backbone(images))


def create_timm_image_teacher(
    specification: Specification,
    *,
    sha256: str | None,
    statistics: Statistics,
    precision: Precision,
) -> TimmImageTeacher:
    """Load an image encoder; see :func:`recon_ray.teachers.create.create_image_teacher`."""
    import timm

    arch = specification.arch.removesuffix(PRELOGITS_SUFFIX)
    is_original = arch != specification.arch
    _check_arch(specification, arch)
    file = _find_original(specification) if is_original else _find_published(specification)
    check_pin(specification.name, file.sha256, sha256)
    settings = _settings(arch, None if is_original else file.tag)
    state, path = read_weights(file.path).state, str(file.path)
    backbone: nn.Module
    if is_original:
        backbone = PrelogitsVit(arch)
        load_prelogits(backbone, state, name=specification.name, path=path)
        dim, own = backbone.dim, (HALF, HALF)
    else:
        backbone = timm.create_model(arch, pretrained=False, num_classes=0)
        _load(backbone, state, settings, name=specification.name, path=path)
        dim = _pooled_width(backbone)
        own = (settings["mean"], settings["std"])
    mean, std = choose_statistics(statistics, *own)
    return TimmImageTeacher(
        backbone,
        identity={"name": specification.name, "tag": file.tag, "sha256": file.sha256},
        dim=dim,
        image_size=int(settings["input_size"][-1]),
        mean=mean,
        std=std,
        precision=precision,
    )


def load_prelogits(
    module: PrelogitsVit, state: Mapping[str, Tensor], *, name: str, path: str
) -> None:
    """Load the original checkpoint into a :class:`PrelogitsVit`, without its classifier.

    Raises:
        TeacherError: If the file has no pre-logits layer, or does not fit otherwise.
    """
    if not any(key.startswith("pre_logits.") for key in state):
        raise TeacherError(
            f"Teacher weights {path} have no pre-logits layer, so they are not the original "
            f"ImageNet-21k ViT; give {ORIGINAL_FILE}, or name the architecture without "
            f"{PRELOGITS_SUFFIX}."
        )
    state = {
        key if key.startswith("pre_logits.") else f"backbone.{key}": value
        for key, value in state.items()
        if not key.startswith("head.")
    }
    load_strictly(module, state, name=name, path=path)


def _pooled_width(backbone: nn.Module) -> int:
    """Feature width: the pooled head of convolutional families may be wider than the last stage."""
    width: Any = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    return int(width)


def _check_arch(specification: Specification, arch: str) -> None:
    import timm

    if arch.endswith(AMBIGUOUS_SUFFIX):
        stem = arch.removesuffix(AMBIGUOUS_SUFFIX)
        raise TeacherNameError(
            f"Teacher {specification.text!r}: this name has meant different weights in different "
            f"versions of timm; give timm:{stem}{PRELOGITS_SUFFIX}:<file> for the original weights "
            f"with the pre-logits layer (the published ReCon) or timm:{stem}:augreg_in21k."
        )
    if not timm.is_model(arch):
        near = ", ".join(timm.list_models(f"*{arch}*")[:5]) or "none alike"
        raise TeacherNameError(
            f"Teacher {specification.text!r}: timm has no architecture {arch!r} ({near}); "
            "see timm.list_models() for the names."
        )


def _find_original(specification: Specification) -> WeightsFile:
    source = parse_source(specification, (ORIGINAL_TAG,))
    if source.file is not None:
        return identify(source.file, source.tag or source.file.name)
    if specification.arch != f"vit_base_patch16_224{PRELOGITS_SUFFIX}":
        raise TeacherNameError(f"Teacher {specification.text!r} names no weights; add a file.")
    return identify(_download_original(specification), ORIGINAL_TAG)


def _download_original(specification: Specification) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / ORIGINAL_FILE
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fetching(ORIGINAL_FILE):
            torch.hub.download_url_to_file(
                ORIGINAL_URL, str(path), hash_prefix=ORIGINAL_HASH_PREFIX, progress=False
            )
    except (OSError, RuntimeError) as error:
        raise TeacherError(
            f"Teacher {specification.text!r}: {ORIGINAL_FILE} could not be fetched "
            f"({type(error).__name__}); {WAY_OUT}."
        ) from error
    return path


def _find_published(specification: Specification) -> WeightsFile:
    tags = _tags(specification.arch)
    source = parse_source(specification, tags)
    if source.file is not None:
        return identify(source.file, source.tag or source.file.name)
    tag = source.tag or (tags[0] if tags else None)
    if tag is None:
        raise TeacherNameError(
            f"Teacher {specification.text!r} names no weights and none are published; add a file."
        )
    return identify(_download(specification, Source(tag=tag)), tag)


def _tags(arch: str) -> list[str]:
    """Published tags of an architecture, timm's default first."""
    import timm

    names = timm.list_pretrained(f"{arch}.*")
    tags = [name.split(".", 1)[1] for name in names if name.startswith(f"{arch}.")]
    default = timm.get_pretrained_cfg(arch)
    first = default.tag if default is not None else None
    return sorted(tags, key=lambda tag: tag != first)


def _download(specification: Specification, source: Source) -> Path:
    import huggingface_hub
    import timm

    published = timm.get_pretrained_cfg(f"{specification.arch}.{source.tag}")
    repository = published.hf_hub_id
    files = [published.hf_hub_filename] if published.hf_hub_filename else []
    last: Exception | None = None
    for file in [*files, "model.safetensors", "pytorch_model.bin"] if repository else []:
        try:
            with fetching(specification.text):
                return Path(huggingface_hub.hf_hub_download(repository, file))
        except Exception as error:  # the hub's many kinds of failure have one way out
            last = error
    raise TeacherError(
        f"Teacher {specification.text!r}: the weights {source.tag!r} could not be fetched "
        f"({type(last).__name__ if last else 'not on the hub'}); {WAY_OUT}."
    ) from last


def _settings(arch: str, tag: str | None) -> dict[str, Any]:
    """Input size and normalization constants of an architecture, by tag where it is published."""
    import timm

    known = tag is not None and tag in _tags(arch)
    published = timm.get_pretrained_cfg(f"{arch}.{tag}" if known else arch)
    if published is None:
        raise TeacherError(f"Teacher timm:{arch}: timm has no settings for it; choose another.")
    return published.to_dict()


def _load(
    module: nn.Module,
    state: Mapping[str, Tensor],
    settings: dict[str, Any],
    *,
    name: str,
    path: str,
) -> None:
    """Load published weights without their classifier, which must fit exactly otherwise."""
    if any(key.startswith("pre_logits.") for key in state):
        raise TeacherError(
            f"Teacher weights {path} have a pre-logits layer that {name} does not have; "
            f"name the architecture {name.removeprefix('timm:')}{PRELOGITS_SUFFIX}."
        )
    # timm's own renaming of foreign spellings, where the model's family has one.
    rename = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    state = rename(dict(state), module) if rename is not None else dict(state)
    classifiers = settings.get("classifier") or ()
    prefixes = [classifiers] if isinstance(classifiers, str) else list(classifiers)
    own = module.state_dict().keys()
    state = {
        key: value
        for key, value in state.items()
        if key in own or not key.startswith(tuple(f"{prefix}." for prefix in prefixes))
    }
    load_strictly(module, state, name=name, path=path)
