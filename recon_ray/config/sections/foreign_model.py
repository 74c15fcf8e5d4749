"""Sizes that the shapes in a foreign weights file do not tell."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recon_ray.config.sections.common import Count, Section


class ForeignModelSection(Section):
    """Sizes that a foreign file's shapes do not show. An empty value keeps the published one."""

    num_heads: Count | None = Field(
        None, description="Attention heads; by default one for 64 channels."
    )
    num_groups: Count | None = Field(
        None, description="Point patches a cloud; by default that of the published model."
    )
    group_size: Count | None = Field(
        None, description="Points in a patch; by default that of the decoder, or 32."
    )
    stream: Literal["ALL", "MDM", "CMC"] | None = Field(
        None, description="Towers that a two-tower classifier reads, where its width does not tell."
    )
