"""Named sizes of the model."""

from __future__ import annotations

from typing import Any

from recon_ray.models.recon import Recon

PRESETS: dict[str, dict[str, Any]] = {
    "base": {"embed_dim": 384, "num_heads": 6},
    "small": {"embed_dim": 256, "num_heads": 4},
    "tiny": {"embed_dim": 192, "num_heads": 3},
    # For CPUs: not a published size.
    "nano": {
        "embed_dim": 96,
        "depth": 4,
        "num_heads": 3,
        "num_groups": 32,
        "group_size": 16,
        "decoder_depth": 1,
        "patch_widths": (32, 64, 128),
    },
}
"""What each preset changes of :class:`Recon`'s defaults, which are the published base model."""


def create(preset: str, **overrides: Any) -> Recon:  # noqa: ANN401
    """Build a model from a preset and what differs from it.

    Args:
        preset: One of :data:`PRESETS`.
        overrides: Arguments of :class:`Recon`.

    Raises:
        ValueError: If the preset is unknown.
        TypeError: If an override is not an argument of :class:`Recon`.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; use one of {', '.join(PRESETS)}")
    return Recon(**{**PRESETS[preset], **overrides})
