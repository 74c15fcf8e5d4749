"""Image encoders from timm, and the original ImageNet-21k ViT with its pre-logits layer."""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recon_ray.errors import TeacherError, TeacherNameError
from recon_ray.teachers.activation import choose_architecture
from recon_ray.teachers.protocol import Precision, Statistics, TowerImageTeacher, Triple
from recon_ray.teachers.specification import Specification
from recon_ray.teachers.weights_file import (
    WeightsFile,
    find_weights_file,
    load_strictly,
    read_weights,
)

logger = logging.getLogger(__name__)

PRELOGITS_SUFFIX = "_in21k_prelogits"
# The name under which timm 0.4.5 published it; today's timm reads it as other (AugReg) weights.
AMBIGUOUS_SUFFIX = "_in21k"
ORIGINAL_ARCH = "vit_base_patch16_224"
ORIGINAL_TAG = "original"
ORIGINAL_FILE = "jx_vit_base_patch16_224_in21k-e5005f0a.pth"
ORIGINAL_URL = (
    "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/"
    + ORIGINAL_FILE
)
ORIGINAL_HASH_PREFIX = "e5005f0a"
HALF: Triple = (0.5, 0.5, 0.5)  # mean and deviation of the original ViT's training images


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
        self.num_features = int(self.backbone.num_features)
        layer = nn.Linear(self.num_features, self.num_features)
        self.pre_logits = nn.Sequential(OrderedDict([("fc", layer), ("act", nn.Tanh())]))

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D) in (-1, 1) of normalized images (B, 3, H, W)."""
        return self.pre_logits(self.backbone(images))


def create_timm_image_teacher(
    specification: Specification,
    *,
    sha256: str | None,
    statistics: Statistics,
    precision: Precision,
) -> TowerImageTeacher:
    """Load an image encoder; see :func:`recon_ray.teachers.create.create_image_teacher`.

    The feature is the pooled output before the classifier, or that of the pre-logits layer.
    """
    import timm

    arch = specification.arch.removesuffix(PRELOGITS_SUFFIX)
    is_original = arch != specification.arch
    _check_arch(specification, arch)
    tags = [ORIGINAL_TAG] if is_original else _tags(arch)
    default = None if is_original and arch != ORIGINAL_ARCH else next(iter(tags), None)
    download = partial(_download_original if is_original else _download, arch)
    file = find_weights_file(specification, tags, default, download, sha256=sha256)
    is_tagged = file.tag in tags and not is_original
    settings = _settings(arch, file.tag if is_tagged else None)
    if not is_tagged and not is_original and statistics == "teacher":
        _check_constants(arch, tags)
    if not is_original:
        arch = _settle_activation(specification, file, settings if is_tagged else None)
        specification = replace(specification, arch=arch)
    state, path = read_weights(file.path).state, str(file.path)
    backbone: Any
    if is_original:
        backbone = PrelogitsVit(arch)
        state = _original_state(state, path)
    else:
        backbone = timm.create_model(arch, pretrained=False, num_classes=0)
        state = _published_state(backbone, state, settings, specification, path)
    load_strictly(backbone, state, name=specification.name, path=path)
    return TowerImageTeacher(
        backbone,
        statistics=statistics,
        identity={"name": specification.name, "tag": file.tag, "sha256": file.sha256},
        # The pooled head of convolutional families may be wider than the last stage.
        dim=int(getattr(backbone, "head_hidden_size", None) or backbone.num_features),
        image_size=int(settings["input_size"][-1]),
        mean=HALF if is_original else settings["mean"],
        std=HALF if is_original else settings["std"],
        precision=precision,
    )


def _settle_activation(
    specification: Specification, file: WeightsFile, published: Mapping[str, Any] | None
) -> str:
    """Return the architecture with the activation of the weights; timm notes it at their tags."""
    import timm

    quick = specification.arch.replace("_clip_", "_clip_quickgelu_")
    has_twin = quick != specification.arch and timm.is_model(quick)
    notes = () if published is None else published.get("notes") or ()
    return choose_architecture(
        specification,
        file,
        quick=quick if has_twin else None,
        known=None if published is None else any("QuickGELU" in note for note in notes),
    )


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


def _tags(arch: str) -> list[str]:
    """Return the published tags of an architecture, timm's default first."""
    import timm

    names = timm.list_pretrained(f"{arch}.*")
    tags = [name.split(".", 1)[1] for name in names if name.startswith(f"{arch}.")]
    default = timm.get_pretrained_cfg(arch)
    first = default.tag if default is not None else None
    return sorted(tags, key=lambda tag: tag != first)


def _settings(arch: str, tag: str | None) -> dict[str, Any]:
    """Return input size and normalization constants of an architecture, by its tag if published."""
    import timm

    published = timm.get_pretrained_cfg(arch if tag is None else f"{arch}.{tag}")
    if published is None:
        raise TeacherError(f"Teacher timm:{arch}: timm has no settings for it; choose another.")
    return published.to_dict()


def _check_constants(arch: str, tags: Sequence[str]) -> None:
    """Say that the constants of a file are a choice, where the published weights have several."""
    if len({str((_settings(arch, tag)["mean"], _settings(arch, tag)["std"])) for tag in tags}) > 1:
        logger.warning(
            "timm:%s: weights of this architecture are published with different normalization; "
            "that of the tag %s is used: put the tag of the weights before the file (<tag>:<file>)",
            arch, tags[0],
        )  # fmt: skip


def _download_original(arch: str, tag: str) -> Path:
    if arch != ORIGINAL_ARCH:
        raise LookupError(f"{tag} weights of {arch}")
    path = Path(torch.hub.get_dir()) / "checkpoints" / ORIGINAL_FILE
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            ORIGINAL_URL, str(path), hash_prefix=ORIGINAL_HASH_PREFIX, progress=False
        )
    return path


def _download(arch: str, tag: str) -> Path:
    import huggingface_hub
    import timm

    published = timm.get_pretrained_cfg(f"{arch}.{tag}")
    names = (published.hf_hub_filename, "model.safetensors", "pytorch_model.bin")
    last: Exception = LookupError("not on the hub")
    for file in filter(None, names) if published.hf_hub_id else ():
        try:
            return Path(huggingface_hub.hf_hub_download(published.hf_hub_id, file))
        except Exception as error:  # the next file may be there
            last = error
    raise last


def _original_state(state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Return the original checkpoint for a :class:`PrelogitsVit`, without its classifier.

    Raises:
        TeacherError: If it has no pre-logits layer.
    """
    if not any(key.startswith("pre_logits.") for key in state):
        raise TeacherError(
            f"Teacher weights {path} have no pre-logits layer, so they are not the original "
            f"ImageNet-21k ViT; give {ORIGINAL_FILE}, or name the architecture without "
            f"{PRELOGITS_SUFFIX}."
        )
    return {
        key if key.startswith("pre_logits.") else f"backbone.{key}": value
        for key, value in state.items()
        if not key.startswith("head.")
    }


def _published_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    specification: Specification,
    path: str,
) -> dict[str, Tensor]:
    """Return published weights under the model's own names, without their classifier.

    Raises:
        TeacherError: If they have a pre-logits layer.
    """
    if any(key.startswith("pre_logits.") for key in state):
        raise TeacherError(
            f"Teacher weights {path} have a pre-logits layer that {specification.name} does not "
            f"have; name the architecture {specification.arch}{PRELOGITS_SUFFIX}."
        )
    # timm's own renaming of foreign spellings, where the model's family has one.
    rename = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    state = dict(state) if rename is None else rename(dict(state), module)
    heads = settings.get("classifier") or ()
    prefixes = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    own = module.state_dict().keys()
    return {k: value for k, value in state.items() if k in own or not k.startswith(prefixes)}
