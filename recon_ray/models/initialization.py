"""Initial weights of every model, drawn from torch's default generator.

Pre-training, as the reference:

- encoders: linear layers from a normal of deviation 0.02 cut at 2, biases 0;
- their tokens: in ReCon tokens and positions of deviation 0.02; in plain encoders (two-tower)
  tokens 0, positions of deviation 1;
- decoder: linear layers of the blocks from Xavier's uniform distribution, biases 0; mask token of
  deviation 0.02; position network and output layer with torch's defaults;
- projections to the teachers and of self-contrast: *mean* 0.02, deviation 0.01, biases 0;
- batch norm and layer norm: 1 and 0 everywhere.

Downstream models have the argument ``init``: ``scratch`` draws encoders as in pre-training;
``reference`` leaves torch's defaults in all but the tokens, as the published code does, which never
reaches its own initialization before it loads weights. Their heads always have torch's defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from recon_ray.models.classifier import Classifier
    from recon_ray.models.encoder import PlainEncoder, ReconEncoder
    from recon_ray.models.partseg import PartSegmenter
    from recon_ray.models.recon import Embedder, Recon
    from recon_ray.models.twotower import TwoTower, TwoTowerClassifier

INITS = ("scratch", "reference")


def _check(init: str) -> None:
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, found {init!r}")


# --- Models --------------------------------------------------------------------------------------


def init_recon(model: Recon) -> None:
    """Draw encoder, decoder and projections of pre-training."""
    _init_recon_encoder(model.encoder)
    _init_decoder(model.decoder)
    _init_projections(model.image_proj, model.text_proj, model.contrast_head)


def init_embedder(model: Embedder, init: str) -> None:
    """Draw the encoder; ``reference`` draws all tokens, and leaves torch's projections.

    Raises:
        ValueError: If ``init`` is unknown.
    """
    _check(init)
    if init == "reference":
        _init_tokens(model.encoder)
    else:
        _init_recon_encoder(model.encoder)
        _init_projections(model.image_proj, model.text_proj)


def init_classifier(model: Classifier, init: str) -> None:
    """Draw the encoder; ``reference`` leaves the class token 0.

    Raises:
        ValueError: If ``init`` is unknown.
    """
    _check(init)
    if init == "reference":
        _init_tokens(model.encoder, class_token=False)
    else:
        _init_recon_encoder(model.encoder)


def init_part_segmenter(model: PartSegmenter, init: str) -> None:
    """Draw the encoder; ``reference`` leaves tokens 0 and draws positions of deviation 1.

    Raises:
        ValueError: If ``init`` is unknown.
    """
    _check(init)
    if init == "reference":
        for name, parameter in model.encoder.named_parameters(recurse=False):
            if name.endswith("_pos"):
                nn.init.normal_(parameter)
    else:
        _init_recon_encoder(model.encoder)


def init_two_tower(model: TwoTower) -> None:
    """Draw both towers, decoder and projections of pre-training."""
    _init_plain_encoder(model.encoder)
    _init_plain_encoder(model.contrast_encoder)
    _init_decoder(model.decoder)
    _init_projections(model.image_proj, model.text_proj)


def init_two_tower_classifier(model: TwoTowerClassifier, init: str) -> None:
    """Draw both towers; ``reference`` leaves torch's defaults in the reconstructing one.

    Its class token and position have deviation 0.02 in both cases.

    Raises:
        ValueError: If ``init`` is unknown.
    """
    _check(init)
    if init == "scratch":
        _init_plain_encoder(model.encoder)
    _init_plain_encoder(model.contrast_encoder)
    for name in ("class_token", "class_pos"):
        nn.init.trunc_normal_(model.encoder.get_parameter(name), std=0.02)


# --- Parts ---------------------------------------------------------------------------------------


def _init_recon_encoder(encoder: ReconEncoder) -> None:
    _draw_linear(encoder, partial(nn.init.trunc_normal_, std=0.02))
    _init_tokens(encoder)


def _init_tokens(encoder: ReconEncoder, *, class_token: bool = True) -> None:
    for name, parameter in encoder.named_parameters(recurse=False):  # tokens and positions
        if class_token or name != "class_token":
            nn.init.trunc_normal_(parameter, std=0.02)


def _init_plain_encoder(encoder: PlainEncoder) -> None:
    _draw_linear(encoder, partial(nn.init.trunc_normal_, std=0.02))
    for name in encoder.tokens:
        nn.init.normal_(encoder.get_parameter(f"{name}_pos"))


def _init_decoder(decoder: nn.Module) -> None:
    _draw_linear(decoder.get_submodule("blocks"), nn.init.xavier_uniform_)
    nn.init.trunc_normal_(decoder.get_parameter("mask_token"), std=0.02)


def _init_projections(*heads: nn.Module | None) -> None:
    for head in heads:
        if head is not None:
            _draw_linear(head, partial(nn.init.normal_, mean=0.02, std=0.01))


def _draw_linear(module: nn.Module, draw: Callable[[Tensor], object]) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            draw(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
