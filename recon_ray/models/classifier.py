"""Classifier on a pre-trained encoder, and the parameters that each protocol trains.

The published probes freeze by name: whatever has ``cls`` in it is trained, so that class token and
class position move with the head, and the batch statistics of the frozen embedding move too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from recon_ray.models.cloud import CloudModel, EncoderModel
from recon_ray.models.heads import ClassHead
from recon_ray.models.initialization import init_classifier
from recon_ray.points.random import RandomSource

ProtocolT = TypeVar("ProtocolT", bound="Protocol")

PROTOCOLS = ("full", "linear", "mlp3", "probe")
"""Trained parts: everything; the head with class token and class position (the published probes
``linear`` and ``mlp3``); the head alone, with the encoder in evaluation mode (``probe``)."""


def is_head_parameter(name: str) -> bool:
    """Return whether a parameter is in the group that learns ten times as fast (published rule).

    Prefixes of wrappers in the dotted name make no difference.
    """
    parts = name.split(".")
    return "head" in parts or parts[-1] in ("class_token", "class_pos")


class Protocol(CloudModel):
    """Base of models with a module ``head``: freezes what a protocol does not train."""

    protocol = "full"

    def set_protocol(self, protocol: str) -> None:
        """Choose the trained parts; see :data:`PROTOCOLS`.

        Raises:
            ValueError: If the protocol is unknown.
        """
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, found {protocol!r}")
        self.protocol = protocol
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self._is_trained(name))
        self.train(self.training)

    def train(self: ProtocolT, mode: bool = True) -> ProtocolT:
        """Set training mode; the frozen encoders of a probe stay in evaluation mode."""
        super().train(mode)
        if self.protocol == "probe":
            for name, part in self.named_children():
                part.train(mode and name == "head")
        return self

    def _is_trained(self, name: str) -> bool:
        if self.protocol == "full":
            return True
        return name.startswith("head.") if self.protocol == "probe" else is_head_parameter(name)

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return names and parameters that the protocol trains."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)


class Classifier(Protocol, EncoderModel):
    """Classifier of clouds by the three tokens and the maximum over the patches.

    Args:
        num_classes: Number of classes.
        head: ``linear``, or ``mlp`` for three layers.
        dropout: Dropout in the latter.
        init: ``scratch`` or ``reference``, see :mod:`recon_ray.models.initialization`.
        others: Sizes, see :class:`~recon_ray.models.cloud.EncoderModel`.

    Raises:
        ValueError: If the sizes do not fit each other, or a name is unknown.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_groups: int = 64,
        group_size: int = 32,
        drop_path: float = 0.1,
        head: str = "mlp",
        dropout: float = 0.5,
        init: str = "scratch",
        patch_widths: Sequence[int] = (128, 256, 512),
        fps_min_sq_norm: float = -1.0,
    ) -> None:
        super().__init__(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_groups=num_groups,
            group_size=group_size,
            drop_path=drop_path,
            patch_widths=patch_widths,
            fps_min_sq_norm=fps_min_sq_norm,
        )
        self.num_classes = num_classes
        self.head = ClassHead(4 * embed_dim, num_classes, head, dropout=dropout)
        init_classifier(self, init)

    def _encode(self, points: Tensor, source: RandomSource) -> tuple[Tensor, Tensor]:
        if self.protocol != "probe":
            return super()._encode(points, source)
        with torch.no_grad():
            return self.encoder(*self._cut(points))

    def forward_head(self, tokens: Tensor, source: RandomSource = None) -> Tensor:
        """Return logits (B, classes) of the (B, 3 + G, D) of :meth:`forward_features`."""
        queries, x = tokens[:, :3], tokens[:, 3:]
        pooled = torch.cat([queries.flatten(1), x.amax(dim=1)], dim=-1)  # (B, 4 D)
        return self.head(pooled, source)

    def forward(self, points: Tensor, source: RandomSource = None) -> Tensor:
        """Return logits (B, classes) of (B, N, 3) clouds.

        Stochastic depth and dropout draw from ``source``.
        """
        return self.forward_head(self.forward_features(points, source), source)
