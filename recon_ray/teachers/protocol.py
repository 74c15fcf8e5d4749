"""Classes of teachers: frozen, always in evaluation mode, and named by their weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T", bound="FrozenTeacher")
#: Precision of a teacher; "step" is that of the autocast around it.
Precision: TypeAlias = Literal["fp32", "bf16", "step"]
Statistics: TypeAlias = Literal["teacher", "imagenet"]
Triple: TypeAlias = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class FrozenTeacher(nn.Module):
    """A network that is never trained.

    Its parameters need no gradient and it stays in evaluation mode: ``train()`` on it, or on a
    module that holds it, changes nothing. Weights are float32; the forward pass computes in
    ``precision``: ``fp32`` or ``bf16`` whatever the autocast around it, or ``step`` for that of
    the autocast.

    Attributes:
        identity: ``name``, ``tag`` and ``sha256`` of the weights.
        dim: Width of the features.
    """

    _anchor: Tensor

    def __init__(self, *, identity: Mapping[str, str], dim: int, precision: Precision) -> None:
        super().__init__()
        if precision not in ("fp32", "bf16", "step"):
            raise ValueError(f"teacher precision is {precision!r}: give 'fp32', 'bf16' or 'step'.")
        self.identity: dict[str, str] = dict(identity)
        self.dim = dim
        self.precision = precision
        # Follows the module through .to(device), also in teachers without any weight.
        self.register_buffer("_anchor", torch.zeros(0), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device that the teacher computes on."""
        return self._anchor.device

    def freeze(self) -> None:
        """Put the submodules into evaluation mode, without gradients; constructors end with it."""
        self.requires_grad_(False)
        self.train(False)

    def train(self: T, mode: bool = True) -> T:
        """Stay in evaluation mode, whatever the argument."""
        return super().train(False)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the forward pass."""
        if self.precision == "step":
            return nullcontext()
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )


class ImageTeacher(FrozenTeacher):
    """Encodes images; see :class:`FrozenTeacher`.

    Attributes:
        image_size: Side of the square images it takes, in pixels.
        mean: Channel means subtracted from images in [0, 1].
        std: Channel deviations that they are divided by then.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        *,
        identity: Mapping[str, str],
        dim: int,
        image_size: int,
        mean: Triple,
        std: Triple,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(identity=identity, dim=dim, precision=precision)
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.register_buffer("_mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, dim) of normalized images (B, 3, H, W)."""

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: (B, 3, H, W) floating point in [0, 1], or uint8, RGB, on any device.

        Returns:
            (B, dim) float32 on the teacher's device, not normalized.

        Raises:
            ValueError: If the images have another shape than the teacher takes.
        """
        self._check(images)
        scale = 1.0 if images.is_floating_point() else 1.0 / 255.0
        images = images.to(self.device, torch.float32) * scale
        with self.autocast():
            return self((images - self._mean) / self._std).float()

    def _check(self, images: Tensor) -> None:
        size = self.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images have shape {tuple(images.shape)}: teacher {self.identity['name']} takes "
                f"(B, 3, {size}, {size})."
            )


class TowerImageTeacher(ImageTeacher):
    """A network whose output is the feature.

    Args:
        backbone: The network.
        statistics: Normalize with its own constants (``teacher``), or with ImageNet's as the
            reference did for every teacher (``imagenet``).
        constants: Arguments of :class:`ImageTeacher`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        statistics: Statistics,
        **constants: Any,  # noqa: ANN401
    ) -> None:
        if statistics not in ("teacher", "imagenet"):
            raise ValueError(f"teacher statistics is {statistics!r}: give 'teacher' or 'imagenet'.")
        if statistics == "imagenet":
            constants |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        super().__init__(**constants)
        self.backbone = backbone
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, dim) of normalized images (B, 3, H, W)."""
        return self.backbone(images)


class TextTeacher(FrozenTeacher):
    """Encodes texts; see :class:`FrozenTeacher`."""

    @abstractmethod
    def forward(self, texts: list[str]) -> Tensor:
        """Return features (T, dim) of texts."""

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """Encode texts.

        Args:
            texts: T sentences.

        Returns:
            (T, dim) float32 on the teacher's device, not normalized.
        """
        if not texts:
            return torch.zeros(0, self.dim, device=self.device)
        with self.autocast():
            return self(list(texts)).float()
