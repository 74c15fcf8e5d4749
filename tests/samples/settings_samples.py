"""Settings of the training loop from options without their sections."""

from __future__ import annotations

from typing import Any

from recon_ray.config.sections.common import RuntimeSection
from recon_ray.config.sections.training import OptimSection, TrainingConfig, TrainSection
from recon_ray.train.settings import FitSettings


def make_settings(*, seed: int = 0, protocol: str = "sound", **options: Any) -> FitSettings:
    """Sort options into the sections of a configuration; what is in none is the job's own."""
    config: dict[str, Any] = {"run": {"seed": seed}, "protocol": protocol}
    for section in (TrainSection, OptimSection, RuntimeSection):
        names = section.model_fields.keys() & options.keys() - {"precision"}
        name = section.__name__.removesuffix("Section").lower()
        config[name] = {key: options.pop(key) for key in names}
    return FitSettings(TrainingConfig.model_validate(config), **options)
