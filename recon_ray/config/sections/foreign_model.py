"""Sizes of a foreign model that its weights do not determine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recon_ray.config.sections.common import Count, Section


class ForeignModelSection(Section):
    """Sizes that foreign weights do not determine. null is the published value."""

    num_heads: Count | None = Field(None, description="Attention heads; by default width / 64.")
    num_groups: Count | None = Field(None, description="Patches; by default as published.")
    group_size: Count | None = Field(
        None, description="Points in a patch; by default that of the decoder, or 32."
    )
    stream: Literal["ALL", "MDM", "CMC"] | None = Field(
        None, description="Towers that a two-tower classifier reads; by default found by its width."
    )
