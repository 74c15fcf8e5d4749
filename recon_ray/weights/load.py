"""Loading of weights into models, with a report of every key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from recon_ray.errors import CheckpointError
from recon_ray.models.presets import MODELS, arguments_of, kind_of
from recon_ray.weights.architecture import missing_arguments
from recon_ray.weights.weight_files import LoadedWeights, refuse_other_heads

SOURCES: dict[str, tuple[str, ...]] = {
    "recon": ("recon", "pointmae"),
    "embedder": ("embedder", "recon", "classifier", "partseg", "pointmae"),
    "classifier": ("classifier", "recon", "embedder", "partseg", "pointmae"),
    "partseg": ("partseg", "recon", "embedder", "classifier", "pointmae"),
    "twotower": ("twotower",),
    "twotower_classifier": ("twotower_classifier", "twotower"),
}
"""Kinds of weights that each kind of model can start from."""

SHARED = ("encoder.", "contrast_encoder.", "decoder.", "image_proj.", "text_proj.")
"""Parts that mean the same in every kind of model; heads are of their own kind only."""

NEW_PARTS: dict[str, tuple[str, ...]] = {
    "classifier": ("head.",),
    "partseg": ("category.", "propagation.", "part_head."),
    "twotower_classifier": ("head.", "encoder.class_token", "encoder.class_pos"),
}
"""Parts of a downstream model that the weights at its start lack."""

CONTRAST_BRANCH = ("contrast_norm", "contrast_attn", "contrast_mlp", "_token", "_pos")
"""Parts that Point-MAE does not have."""

# Parts of names, in this order, and the configuration key that decides the shape.
OPTIONS = (
    ("decoder.head.", "model.group_size"),
    ("decoder.blocks.", "model.decoder_depth and model.embed_dim"),
    ("image_proj.", "teacher.image.name (the width of its features) and model.embed_dim"),
    ("text_proj.", "teacher.text.name (the width of its features) and model.embed_dim"),
    ("contrast_head.", "loss.self_contrast and model.embed_dim"),
    ("part_head.fc3.", "the data set, whose number of parts differs"),
    ("category.fc.", "the data set, whose number of categories differs"),
    (".embed.fc1.", "model.preset (the widths of the patch embedding)"),
    (".embed.fc2.", "model.preset (the widths of the patch embedding)"),
    (".embed.fc3.", "model.preset (the widths of the patch embedding)"),
    (".embed.norm", "model.preset (the widths of the patch embedding)"),
)
DEFAULT_OPTION = "model.embed_dim (or model.preset)"


@dataclass(frozen=True)
class LoadReport:
    """Report of every key of a file and of a model.

    ``missing`` and ``unexpected`` keys are normal between such weights and such a model; only
    ``unknown`` keys are a surprise.

    Attributes:
        source: Origin of the weights.
        loaded: Keys with one name in both.
        renamed: Our name and the file's of keys that were loaded under another name.
        missing: Keys of the model that such weights always lack (its head); they keep their fresh
            weights. Any other one is an error.
        unexpected: Keys of the file for parts that such a model never has (decoder, projections).
        unknown: Keys of the file that belong to no known model.
        dropped: Keys of the frozen teachers, which are never imported.
    """

    source: str
    loaded: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return one line with the counts, and the missing or unused parts."""
        text = f"{self.source}: {len(self.loaded) + len(self.renamed)} tensors loaded"
        for kind, keys in (
            ("not in the file, drawn afresh", self.missing),
            ("not used", self.unexpected),
            ("unknown", self.unknown),
            ("of the teachers left out", self.dropped),
        ):
            if keys:
                text += f", {len(keys)} {kind} ({_parts(keys)})"
        return text

    def table(self) -> str:
        """Return a line for every key."""
        rows = [("renamed", f"{theirs} -> {ours}") for ours, theirs in self.renamed]
        rows += [("loaded", key) for key in self.loaded]
        rows += [("missing", f"{key} (expected)") for key in self.missing]
        rows += [("unexpected", f"{key} (expected)") for key in self.unexpected]
        rows += [("unexpected", f"{key} (of no known model)") for key in self.unknown]
        rows += [("unexpected", f"{key} (teacher)") for key in self.dropped]
        return "\n".join([*(f"{status:12}{key}" for status, key in rows), self.summary()])


def compare(model: nn.Module, weights: LoadedWeights, *, strict: bool = False) -> LoadReport:
    """Compare a model, which may lie on the meta device, with weights.

    Args:
        model: One of :data:`recon_ray.models.presets.MODELS`.
        weights: Weights for it.
        strict: Refuse any missing key, as in evaluation.

    Raises:
        CheckpointError: If the weights cannot start such a model, a shape differs, blocks are left
            over, or a part is missing that is not new.
    """
    kind, own = kind_of(model), model.state_dict()
    if weights.kind not in SOURCES[kind]:
        raise CheckpointError(_wrong_kind(kind, weights))
    is_same = weights.kind == kind
    offered = {key for key in weights.state if is_same or key.startswith(SHARED)}
    _check_shapes(own, weights.state, offered, weights.source)
    missing = tuple(key for key in own if key not in offered)
    unexpected = tuple(key for key in weights.state if key not in offered or key not in own)
    _check_missing(kind, weights, missing, strict=strict)
    _check_surplus(weights, unexpected)
    used = {key: weights.renamed.get(key, key) for key in own if key in offered}
    return LoadReport(
        source=weights.source,
        loaded=tuple(key for key, theirs in used.items() if theirs == key),
        renamed=tuple(names for names in used.items() if names[0] != names[1]),
        missing=missing,
        unexpected=tuple(weights.renamed.get(key, key) for key in unexpected),
        unknown=weights.unknown,
        dropped=weights.dropped,
    )


def initialize(model: nn.Module, weights: LoadedWeights, *, strict: bool = False) -> LoadReport:
    """Load weights of own runs or imported files into a model; the arguments are :func:`compare`'s.

    Returns:
        Report of every key; log its :meth:`LoadReport.summary`.

    Raises:
        CheckpointError: See :func:`compare`.
    """
    report = compare(model, weights, strict=strict)
    names = [*report.loaded, *dict(report.renamed)]
    model.load_state_dict({name: weights.state[name] for name in names}, strict=False)
    return report


def build(weights: LoadedWeights, **overrides: Any) -> tuple[nn.Module, LoadReport]:  # noqa: ANN401
    """Make the model of the weights, and load it strictly.

    Args:
        weights: Weights of one of our kinds.
        overrides: Constructor arguments that differ (``num_heads``, ``num_groups``, ``stream``).

    Raises:
        CheckpointError: If an argument is wrong or missing, or the weights do not fit.
    """
    if weights.kind not in MODELS:
        raise CheckpointError(
            f"{weights.source}: it holds the encoder of {weights.kind}, not a whole model; "
            "use it as the start (init_from) of another one"
        )
    model = construct(weights.kind, weights, **overrides)
    return model, initialize(model, weights, strict=True)


def construct(kind: str, weights: LoadedWeights, **overrides: Any) -> nn.Module:  # noqa: ANN401
    """Make a model of a kind with the sizes of the weights or ``overrides``, without loading them.

    Raises:
        CheckpointError: If an argument is wrong, or missing in the file.
    """
    if weights.kind not in SOURCES[kind]:
        raise CheckpointError(_wrong_kind(kind, weights))
    known = arguments_of(kind)
    surplus = sorted(set(overrides) - known)
    if surplus:
        raise CheckpointError(f"a {kind} model has no {', '.join(surplus)}; leave it out")
    arguments = {**weights.architecture, **overrides}
    check_arguments(kind, weights, arguments)
    arguments = {name: value for name, value in arguments.items() if name in known}
    try:
        return MODELS[kind](**arguments)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{weights.source}: {error}") from error


def encoder_sizes(weights: LoadedWeights) -> dict[str, Any]:
    """Return the known sizes that a model must share with the weights it starts from."""
    names = ("embed_dim", "depth", "num_heads", "num_groups", "group_size", "patch_widths")
    return {name: weights.architecture[name] for name in names if name in weights.architecture}


def _wrong_kind(kind: str, weights: LoadedWeights) -> str:
    return (
        f"{weights.source}: it holds the weights of a {weights.kind} model, which cannot start a "
        f"{kind} model; give weights of {' or '.join(SOURCES[kind])}"
    )


def check_arguments(kind: str, weights: LoadedWeights, arguments: Mapping[str, Any]) -> None:
    """Reject missing or conflicting arguments of a model that starts from weights.

    Args:
        kind: Kind of the model.
        weights: Weights that it starts from.
        arguments: Its constructor arguments.

    Raises:
        CheckpointError: If one is missing that shapes do not determine, or num_heads differs.
    """
    refuse_other_heads(weights, arguments)
    absent = missing_arguments(kind, arguments)
    if kind != weights.kind:  # new in this model: its default is a choice
        absent = [name for name in absent if name not in ("stream", "feature_blocks")]
    if kind in ("classifier", "twotower_classifier") and "num_classes" not in arguments:
        absent.append("num_classes")
    if absent:
        raise CheckpointError(
            f"{weights.source}: it does not record {' and '.join(absent)} of the {kind} model; set "
            f"{' '.join(f'{name}=...' for name in absent)} (in a job "
            f"{' '.join(f'model.{name}=...' for name in absent)}) as in its training, or "
            "model.published=<name> for a published file"
        )


def _check_shapes(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], offered: set[str], source: str
) -> None:
    wrong = [key for key in own if key in offered and state[key].shape != own[key].shape]
    if not wrong:
        return
    # The width of the transformer changes nearly every tensor: it is the one to name first.
    key = next((key for key in wrong if key == "encoder.norm.weight"), wrong[0])
    raise CheckpointError(
        f"{source}: {key} has shape {tuple(state[key].shape)} in the file but "
        f"{tuple(own[key].shape)} in the model; change {option_of(key)}"
    )


def option_of(key: str) -> str:
    """Return the configuration key that decides the shape of a weight."""
    if key.startswith("head."):
        return (
            "the number of classes or the kind of head (train.tune), or leave the head out: "
            "jobs/import_weights.py kind=embedder writes weights without one"
        )
    return next((option for part, option in OPTIONS if part in key), DEFAULT_OPTION)


def _check_missing(
    kind: str, weights: LoadedWeights, missing: tuple[str, ...], *, strict: bool
) -> None:
    allowed: tuple[str, ...] = ()
    if not strict and weights.kind != kind:
        allowed = NEW_PARTS.get(kind, ())
    wrong = [key for key in missing if not key.startswith(allowed)]
    if weights.kind == "pointmae" and not strict:
        wrong = [key for key in wrong if not _beyond_pointmae(key)]
    if wrong:
        hint = "choose the model.* of the run that wrote it"
        if any(re.search(r"\.blocks\.\d+\.norm1\.", key) for key in wrong):
            hint = "set model.depth (or model.preset) to the file's"
        elif weights.kind == "pointmae":
            hint = "Point-MAE has no contrast branch, so it can only be the start of a training"
        elif any(key.startswith(("image_proj.", "text_proj.")) for key in wrong):
            hint = "give weights of a pre-training with that teacher"
        raise CheckpointError(
            f"{weights.source}: the {weights.kind} weights lack {len(wrong)} tensors that the "
            f"{kind} model needs ({_some(wrong)}), which would stay random; {hint}"
        )


def _beyond_pointmae(key: str) -> bool:
    """Return whether a missing key is of the contrast branch, or of a head on it."""
    if key.startswith(("image_proj.", "text_proj.", "contrast_head.")):
        return True
    return key.startswith("encoder.") and any(part in key for part in CONTRAST_BRANCH)


def _check_surplus(weights: LoadedWeights, unexpected: tuple[str, ...]) -> None:
    surplus = [key for key in unexpected if key.startswith(("encoder.", "contrast_encoder."))]
    if surplus:
        raise CheckpointError(
            f"{weights.source}: the model has no place for {len(surplus)} tensors of the file's "
            f"encoder ({_some(surplus)}); set model.depth (or model.preset) to the file's"
        )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _parts(keys: tuple[str, ...]) -> str:
    """Join the first parts of dotted names, each once."""
    parts = dict.fromkeys(key.split(".")[0] for key in keys)
    return ", ".join(list(parts)[:6]) + (", ..." if len(parts) > 6 else "")
