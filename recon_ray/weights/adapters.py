"""Translation of names and shapes of the reference's weights to ours and back.

Each kind of model has a table of rules; a rule pairs one of our modules with one of the
reference's. The reference's point-wise convolutions are linear layers here, so their weights lose
or gain an axis of length 1. No value changes: importing and exporting are exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from recon_ray.errors import CheckpointError


@dataclass(frozen=True)
class Rule:
    """One of our modules or parameters and its name in the reference.

    Attributes:
        ours: Dotted name; ``*`` stands for a layer number.
        reference: Dotted name with the same ``*``.
        is_convolution: The reference's weight has a last axis of length 1.
    """

    ours: str
    reference: str
    is_convolution: bool = False


def _prefixed(ours: str, reference: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return the same rules inside other modules."""
    return tuple(
        Rule(ours + rule.ours, reference + rule.reference, rule.is_convolution) for rule in rules
    )


PATCH_EMBED = (
    Rule("fc1", "first_conv.0", is_convolution=True),
    Rule("norm1", "first_conv.1"),
    Rule("fc2", "first_conv.3", is_convolution=True),
    Rule("fc3", "second_conv.0", is_convolution=True),
    Rule("norm2", "second_conv.1"),
    Rule("fc4", "second_conv.3", is_convolution=True),
)
POSITION_EMBED = (Rule("fc1", "0"), Rule("fc2", "2"))
BLOCK = tuple(Rule(name, name) for name in ("norm1", "attn", "norm2", "mlp"))
CONTRAST_BLOCK = tuple(
    Rule(f"contrast_{name}", f"{name}_contrast") for name in ("norm1", "attn", "norm2", "mlp")
)
TOKENS = tuple(
    Rule(f"{ours}_{kind}", f"{reference}_{kind}")
    for ours, reference in (("class", "cls"), ("image", "img"), ("text", "text"))
    for kind in ("token", "pos")
)
# Tokens, patch embedding, blocks and norm: the same rules with and without the contrast branch.
TRUNK = (
    *TOKENS,
    *_prefixed("embed.", "encoder.", PATCH_EMBED),
    *_prefixed("pos_embed.", "pos_embed.", POSITION_EMBED),
    *_prefixed("blocks.*.", "blocks.blocks.*.", BLOCK + CONTRAST_BLOCK),
    Rule("norm", "norm"),
)
DECODER = (
    Rule("decoder.mask_token", "mask_token"),
    *_prefixed("decoder.pos_embed.", "decoder_pos_embed.", POSITION_EMBED),
    *_prefixed("decoder.blocks.*.", "MAE_decoder.blocks.*.", BLOCK),
    Rule("decoder.norm", "MAE_decoder.norm"),
    Rule("decoder.head", "increase_dim.0", is_convolution=True),
)
PROJECTIONS = (Rule("image_proj", "img_proj"), Rule("text_proj", "text_proj"))
CONTRAST_HEAD = tuple(
    Rule(f"contrast_head.{ours}", f"cls_proj.{number}")
    for ours, number in (("fc1", 0), ("norm1", 1), ("fc2", 3), ("norm2", 4))
)
HEAD = tuple(
    Rule(f"head.{ours}", f"cls_head_finetune.{number}")
    for ours, number in (("fc1", 0), ("norm1", 1), ("fc2", 4), ("norm2", 5), ("fc3", 8))
)
PARTS = (
    Rule("category.fc", "label_conv.0", is_convolution=True),
    Rule("category.norm", "label_conv.1"),
    Rule("propagation.fc1", "propagation_0.mlp_convs.0", is_convolution=True),
    Rule("propagation.norm1", "propagation_0.mlp_bns.0"),
    Rule("propagation.fc2", "propagation_0.mlp_convs.1", is_convolution=True),
    Rule("propagation.norm2", "propagation_0.mlp_bns.1"),
    *(Rule(f"part_head.fc{n}", f"convs{n}", is_convolution=True) for n in (1, 2, 3)),
    *(Rule(f"part_head.norm{n}", f"bns{n}") for n in (1, 2)),
)
# Downstream files of the reference spell the trunk without its first prefix.
ENCODER = _prefixed("encoder.", "", TRUNK)
PRETRAINED_ENCODER = _prefixed("encoder.", "MAE_encoder.", TRUNK)
CONTRAST_TOWER = _prefixed("contrast_encoder.", "Dis_encoder.", TRUNK)

TABLES: dict[str, tuple[Rule, ...]] = {
    "recon": (*PRETRAINED_ENCODER, *DECODER, *PROJECTIONS, *CONTRAST_HEAD),
    "embedder": (*PROJECTIONS, *ENCODER),
    "classifier": (*HEAD, *ENCODER),
    "partseg": (*PARTS, *ENCODER),
    "twotower": (*PRETRAINED_ENCODER, *CONTRAST_TOWER, *DECODER, *PROJECTIONS),
    "twotower_classifier": (*CONTRAST_TOWER, *HEAD, *ENCODER),
    # Point-MAE's files: of pre-training with the first prefix, of fine-tuning without it.
    "pointmae": (*PRETRAINED_ENCODER, *DECODER, *HEAD, *ENCODER),
}
"""Rules of each kind of model."""


def _rename(name: str, pattern: str, replacement: str) -> str | None:
    """Replace the pattern at the start of a dotted name; return None if it does not match."""
    expression = re.escape(pattern).replace(r"\*", r"(\d+)") + r"(?=\.|$)"
    found = re.match(expression, name)
    if found is None:
        return None
    return replacement.replace("*", "".join(found.groups())) + name[found.end() :]


def _table(kind: str) -> tuple[Rule, ...]:
    if kind not in TABLES:
        raise CheckpointError(f"no weight table for {kind!r}; known are {', '.join(TABLES)}")
    return TABLES[kind]


def from_reference(
    state: Mapping[str, Tensor], kind: str = "recon"
) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    """Translate a reference state dict to our names and shapes.

    Args:
        state: Bare state dict, without prefixes of parallel wrappers.
        kind: Entry of :data:`TABLES`.

    Returns:
        The translated state dict, the file's name of each of our keys, and the keys without a rule.

    Raises:
        CheckpointError: If the kind is unknown or a convolution has the wrong shape.
    """
    translated: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    unknown: list[str] = []
    for key, value in state.items():
        for rule in _table(kind):
            ours = _rename(key, rule.reference, rule.ours)
            if ours is not None:
                translated[ours] = _to_linear(key, value) if _has_axis(rule, key) else value
                renamed[ours] = key
                break
        else:
            unknown.append(key)
    return translated, renamed, tuple(unknown)


def to_reference(state: Mapping[str, Tensor], kind: str = "recon") -> dict[str, Tensor]:
    """Translate our state dict to the reference's names and shapes.

    Args:
        state: State dict of one of our models.
        kind: Entry of :data:`TABLES`.

    Raises:
        CheckpointError: If the kind is unknown or a key is in no rule.
    """
    translated: dict[str, Tensor] = {}
    for key, value in state.items():
        for rule in _table(kind):
            name = _rename(key, rule.ours, rule.reference)
            if name is not None:
                translated[name] = value.unsqueeze(-1) if _has_axis(rule, key) else value
                break
        else:
            raise CheckpointError(f"{key} has no name in the reference's {kind} model")
    return translated


def _has_axis(rule: Rule, key: str) -> bool:
    return rule.is_convolution and key.endswith(".weight")


def _to_linear(key: str, value: Tensor) -> Tensor:
    if value.ndim != 3 or value.shape[-1] != 1:
        raise CheckpointError(
            f"{key} must be a point-wise convolution of shape (out, in, 1), found "
            f"{tuple(value.shape)}"
        )
    return value.squeeze(-1)
