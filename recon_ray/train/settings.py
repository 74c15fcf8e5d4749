"""Settings of the training loop: the job's configuration, and what the job adds to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recon_ray.config.sections.training import TrainingConfig
from recon_ray.protocols import ProtocolFlags


@dataclass(frozen=True)
class FitSettings:
    """Settings of a fit: every option is read from the configuration where it acts.

    Attributes:
        config: The job's configuration.
        precision: ``runtime.precision``, resolved for the device.
        training_set: Identity of the training rows; empty where it is not known.
        extra_epoch: Whether the published extra epoch applies (segmentation has none).
        double_step: Step, clip, and step again with the same gradient, as the published part
            segmentation does.
        validate_every_epochs: Epochs between two validations, None for none; the last epoch is
            always validated.
        validate_from_epoch: First epoch (from 0) that is validated.
        select: Value of the validation whose highest one marks the best checkpoint.
    """

    config: TrainingConfig
    precision: Literal["fp32", "bf16"] = "fp32"
    training_set: str = ""
    extra_epoch: bool = True
    double_step: bool = False
    validate_every_epochs: int | None = None
    validate_from_epoch: int = 0
    select: str | None = None

    @property
    def flags(self) -> ProtocolFlags:
        """Habits of the published code that are repeated."""
        return self.config.flags

    @property
    def total_epochs(self) -> int:
        """Epochs that are trained."""
        return self.config.train.epochs + int(self.flags.extra_epoch and self.extra_epoch)

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the number of optimizer steps after which the fit ends."""
        whole = self.total_epochs * steps_per_epoch
        return min(whole, self.config.train.steps or whole)

    def validates(self, epoch: int) -> bool:
        """Return whether there is a validation at the end of an epoch, counted from 0."""
        every = self.validate_every_epochs
        if every is None or epoch < self.validate_from_epoch:
            return False
        number = epoch if self.flags.validates_epoch_zero else epoch + 1
        return number % every == 0 or epoch + 1 == self.total_epochs
