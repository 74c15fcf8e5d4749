"""Options of ``import_weights``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recon_ray.config.sections.common import JobConfig, LocalPath, Location
from recon_ray.config.sections.foreign_model import ForeignModelSection


class ImportWeightsConfig(JobConfig):
    """jobs/import_weights.py: weights of the reference to safetensors, and back."""

    input: Location | None = Field(
        None,
        description="File of weights (.pth, .safetensors), run folder, checkpoint, or the name of "
        "published weights.",
    )
    output: LocalPath | None = Field(None, description="File to write.")
    kind: Literal[
        "auto",
        "recon",
        "embedder",
        "classifier",
        "partseg",
        "twotower",
        "twotower_classifier",
        "pointmae",
    ] = Field(
        "auto",
        description="Kind of model to write; auto keeps the file's. embedder takes the encoder and "
        "projections of another kind; any other kind than the file's is refused.",
    )
    format: Literal["safetensors", "reference"] = Field(
        "safetensors",
        description="safetensors with the architecture inside, or the reference's .pth layout.",
    )
    model: ForeignModelSection = Field(
        ForeignModelSection(), description="Sizes that a foreign file of weights does not hold."
    )

    @model_validator(mode="after")
    def _has_both_ends(self) -> ImportWeightsConfig:
        missing = [name for name in ("input", "output") if getattr(self, name) is None]
        if missing:
            raise ValueError(f"{' and '.join(f'{name}=<file>' for name in missing)} must be given")
        suffix = ".safetensors" if self.format == "safetensors" else ".pth"
        if self.output is not None and self.output.suffix != suffix:
            raise ValueError(
                f"output={self.output} must end in {suffix} (format={self.format}), by which it is "
                "recognized again"
            )
        return self
