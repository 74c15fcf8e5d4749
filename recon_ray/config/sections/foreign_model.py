"""Sizes of a foreign model that its weights do not determine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recon_ray.config.sections.common import Count, Section

PublishedName = Literal[
    "recon_pretrain", "recon_zeroshot", "recon_svm", "recon_scanobjectnn_pb_t50_rs",
    "recon_scanobjectnn_obj_bg", "recon_scanobjectnn_obj_only", "recon_modelnet40_1k",
    "recon_modelnet40_8k", "recon_shapenetpart",
]  # fmt: skip
PUBLISHED = "Published weights with the sizes that the file of init_from does not record."


class ForeignModelSection(Section):
    """Sizes that foreign weights do not record. null is the recorded value."""

    published: PublishedName | None = Field(None, description=PUBLISHED)
    num_heads: Count | None = Field(None, description="Attention heads.")
    num_groups: Count | None = Field(None, description="Patches of a cloud.")
    group_size: Count | None = Field(None, description="Points in a patch.")
    stream: Literal["ALL", "MDM", "CMC"] | None = Field(
        None, description="Towers that a two-tower classifier reads; by default found by its width."
    )
