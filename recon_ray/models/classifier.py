"""Classification on top of a pre-trained encoder, and which parameters each protocol trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from recon_ray.models.cloud import EncoderModel
from recon_ray.models.encoder import check_init
from recon_ray.models.heads import ClassHead
from recon_ray.points.random import RandomSource

PROTOCOLS = ("full", "linear", "mlp3", "probe")
"""What is trained: everything; the head with class token and class position (the published probes
``linear`` and ``mlp3``, in which the frozen embedding's batch statistics still move); the head
alone (``probe``)."""


def is_head_parameter(name: str) -> bool:
    """Return whether a parameter is in the group that learns ten times as fast (published rule).

    Args:
        name: Dotted name; prefixes of wrappers make no difference.
    """
    parts = name.split(".")
    return "head" in parts or parts[-1] in ("class_token", "class_pos")


class Protocol:
    """Mixin of classifiers: freezes what a protocol does not train.

    The class it is mixed into has a module ``head``.
    """

    protocol = "full"

    def set_protocol(self, protocol: str) -> None:
        """Choose what is trained; see :data:`PROTOCOLS`.

        Raises:
            ValueError: If the protocol is unknown.
        """
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, found {protocol!r}")
        assert isinstance(self, nn.Module)
        self.protocol = protocol
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self._is_trained(name))
        self.train(self.training)

    def _is_trained(self, name: str) -> bool:
        if self.protocol == "full":
            return True
        return name.startswith("head.") if self.protocol == "probe" else is_head_parameter(name)

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that the protocol in force trains."""
        assert isinstance(self, nn.Module)
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)


class Classifier(Protocol, EncoderModel):
    """Classify clouds by the three tokens and the strongest patch features.

    Args:
        num_classes: Number of classes.
        embed_dim: Width D.
        depth: Encoder blocks.
        num_heads: Attention heads; must divide D.
        num_groups: Number G of patches.
        group_size: Points K in a patch.
        drop_path: Drop rate of the last block.
        head: ``linear``, or ``mlp`` for three layers.
        dropout: Dropout in the latter.
        init: ``scratch`` draws the weights of pre-training; ``reference`` keeps torch's defaults
            and a class token of zeros, as the published code does before it loads weights.
        patch_widths: Widths of the patch embedding.
        fps_min_sq_norm: Skip rule of the sampling; 1e-3 reproduces the reference's.

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
        self.init_weights(init)

    def init_weights(self, init: str = "scratch") -> None:
        """Draw initial weights from torch's default generator; the head keeps torch's.

        Raises:
            ValueError: If ``init`` is unknown.
        """
        check_init(init)
        if init == "scratch":
            self.encoder.init_weights()
        else:
            self.encoder.init_tokens(class_token=False)

    def train(self, mode: bool = True) -> Classifier:
        """Set training mode; the frozen encoder of a probe stays in evaluation mode."""
        super().train(mode)
        if self.protocol == "probe":
            self.encoder.eval()
        return self

    def _encode(self, points: Tensor, source: RandomSource) -> tuple[Tensor, Tensor]:
        if self.protocol != "probe":
            return super()._encode(points, source)
        with torch.no_grad():
            return self.encoder(*self._cut(points))

    def forward_head(self, tokens: Tensor, source: RandomSource = None) -> Tensor:
        """Return logits (B, classes) of the (B, 3 + G, D) of :meth:`forward_features`."""
        pooled = torch.cat([tokens[:, :3].flatten(1), tokens[:, 3:].amax(dim=1)], dim=-1)
        return self.head(pooled, source)

    def forward(self, points: Tensor, source: RandomSource = None) -> Tensor:
        """Return logits (B, classes) of (B, N, 3) clouds.

        Args:
            points: (B, N, 3) clouds.
            source: Random numbers of stochastic depth and dropout.
        """
        return self.forward_head(self.forward_features(points, source), source)
