"""Names and shapes of the reference's weights, to ours and back.

Each model class is a table of rules; a rule says which of our modules is which of the reference's.
The reference's point-wise convolutions are linear layers here, so their weights lose or gain an
axis of length 1. No value changes: importing and exporting are exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recon_ray.errors import CheckpointError

TEACHER_PREFIXES = ("img_encoder.", "text_encoder.")
"""Full pre-training files also hold the frozen teachers, which are never imported."""


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

    def prefixed(self, ours: str, reference: str) -> Rule:
        """Give the same rule inside other modules."""
        return Rule(ours + self.ours, reference + self.reference, self.is_convolution)


def _prefixed(ours: str, reference: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(rule.prefixed(ours, reference) for rule in rules)


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
TRUNK = (
    *(
        Rule(f"{ours}_{kind}", f"{reference}_{kind}")
        for ours, reference in (("class", "cls"), ("image", "img"), ("text", "text"))
        for kind in ("token", "pos")
    ),
    *_prefixed("embed.", "encoder.", PATCH_EMBED),
    *_prefixed("pos_embed.", "pos_embed.", POSITION_EMBED),
    *_prefixed("blocks.*.", "blocks.blocks.*.", BLOCK + CONTRAST_BLOCK),
    Rule("norm", "norm"),
)
RECON = (
    *_prefixed("encoder.", "MAE_encoder.", TRUNK),
    Rule("decoder.mask_token", "mask_token"),
    *_prefixed("decoder.pos_embed.", "decoder_pos_embed.", POSITION_EMBED),
    *_prefixed("decoder.blocks.*.", "MAE_decoder.blocks.*.", BLOCK),
    Rule("decoder.norm", "MAE_decoder.norm"),
    Rule("decoder.head", "increase_dim.0", is_convolution=True),
    Rule("image_proj", "img_proj"),
    Rule("text_proj", "text_proj"),
    Rule("contrast_head.fc1", "cls_proj.0"),
    Rule("contrast_head.norm1", "cls_proj.1"),
    Rule("contrast_head.fc2", "cls_proj.3"),
    Rule("contrast_head.norm2", "cls_proj.4"),
)
# Downstream files of the reference spell the trunk without its first prefix.
ENCODER = _prefixed("encoder.", "", TRUNK)
ZERO_SHOT = (*ENCODER, Rule("image_proj", "img_proj"), Rule("text_proj", "text_proj"))

TABLES: dict[str, tuple[Rule, ...]] = {"recon": RECON, "encoder": ENCODER, "zeroshot": ZERO_SHOT}
"""Rules of each kind of model; another class is another entry."""


@dataclass(frozen=True)
class LoadReport:
    """What a load did not use or did not find, in our names and the reference's respectively."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def _match(name: str, pattern: str) -> tuple[str, str] | None:
    """Match the start of a dotted name; give the layer number ("" if none) and the rest."""
    expression = re.escape(pattern).replace(r"\*", r"(\d+)") + r"(?=\.|$)"
    found = re.match(expression, name)
    return None if found is None else ("".join(found.groups()), name[found.end() :])


def _rename(name: str, pattern: str, replacement: str) -> str | None:
    found = _match(name, pattern)
    return None if found is None else replacement.replace("*", found[0]) + found[1]


def _table(kind: str) -> tuple[Rule, ...]:
    if kind not in TABLES:
        raise CheckpointError(f"no weight table for {kind!r}; known are {', '.join(TABLES)}")
    return TABLES[kind]


def strip_reference(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give the bare state dict of a reference checkpoint, without teachers.

    The state dict may lie under ``model`` (preferred), ``base_model`` or ``model_state_dict``, or
    be the mapping itself; every ``module.`` of parallel wrappers is removed.

    Raises:
        CheckpointError: If there are no tensors in it.
    """
    state: Mapping[str, Any] = checkpoint
    for key in ("model", "base_model", "model_state_dict"):
        if isinstance(checkpoint.get(key), Mapping):
            state = checkpoint[key]
            break
    tensors = {
        key.replace("module.", ""): value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise CheckpointError(
            "no weights found: expected a state dict, or one under 'model' or 'base_model', found "
            f"the keys {', '.join(map(repr, list(checkpoint)[:5])) or 'none'}"
        )
    return {key: value for key, value in tensors.items() if not key.startswith(TEACHER_PREFIXES)}


def from_reference(
    state: Mapping[str, Tensor], kind: str = "recon"
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Translate a reference state dict to our names and shapes.

    Args:
        state: State dict as :func:`strip_reference` gives it.
        kind: Entry of :data:`TABLES`.

    Returns:
        The translated state dict and the keys that no rule knows.

    Raises:
        CheckpointError: If the kind is unknown or a convolution has the wrong shape.
    """
    translated: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, value in state.items():
        for rule in _table(kind):
            ours = _rename(key, rule.reference, rule.ours)
            if ours is not None:
                translated[ours] = _to_linear(key, value) if _has_axis(rule, key) else value
                break
        else:
            unknown.append(key)
    return translated, tuple(unknown)


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


def load_reference(
    model: nn.Module, checkpoint: Mapping[str, Any], kind: str = "recon", *, strict: bool = True
) -> LoadReport:
    """Load a reference checkpoint into one of our models.

    Args:
        model: Model whose state dict has our names.
        checkpoint: Content of the file, see :func:`strip_reference`.
        kind: Entry of :data:`TABLES`.
        strict: Refuse missing and unexpected keys instead of reporting them.

    Returns:
        Keys of the model that the file lacks, and keys of the file that the model lacks.

    Raises:
        CheckpointError: If shapes differ, or keys do and ``strict`` is set.
    """
    state, unknown = from_reference(strip_reference(checkpoint), kind)
    own = model.state_dict()
    _check_shapes(own, state)
    missing = tuple(key for key in own if key not in state)
    surplus = {key: value for key, value in state.items() if key not in own}
    unexpected = (*unknown, *to_reference(surplus, kind))
    if strict and (missing or unexpected):
        raise CheckpointError(
            f"the file does not fit the model: {_summary('missing', missing)}, "
            f"{_summary('unexpected', unexpected)}; choose the preset it was made with"
        )
    model.load_state_dict({key: state[key] for key in own if key in state}, strict=False)
    return LoadReport(missing, unexpected)


def _summary(what: str, keys: tuple[str, ...]) -> str:
    return f"{len(keys)} {what}" + (f" ({', '.join(keys[:3])}, ...)" if keys else "")


def _check_shapes(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for key, value in own.items():
        if key in state and state[key].shape != value.shape:
            raise CheckpointError(
                f"{key} has shape {tuple(state[key].shape)} in the file but {tuple(value.shape)} "
                "in the model; choose the preset it was made with"
            )


def read_reference_file(path: Path) -> dict[str, Any]:
    """Read a ``.pth`` file of the reference without running any code in it.

    Raises:
        CheckpointError: If the file is missing, damaged or holds more than plain data.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give the path of a reference checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises almost anything on a damaged file
        raise CheckpointError(
            f"{path} cannot be read as a weights file: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a dict of weights"
        )
    return content
