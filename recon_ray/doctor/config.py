"""Configuration of ``jobs/doctor.py``."""

from __future__ import annotations

from pydantic import Field

from recon_ray.config.sections.common import JobConfig, Location, Positive, Section


class DoctorSection(Section):
    """Optional checks and limits of time."""

    data: Location | None = Field(
        None, description="Folder of a prepared set that all nodes must see."
    )
    clock_seconds: Positive = Field(
        5.0, description="Largest difference between the clocks of the driver and of a node."
    )
    timeout_seconds: Positive = Field(
        120.0, description="How long to wait for a node's answer before it counts as broken."
    )


class DoctorConfig(JobConfig):
    """jobs/doctor.py: check the driver and every node before a run depends on them."""

    doctor: DoctorSection = Field(DoctorSection(), description="Checks.")
