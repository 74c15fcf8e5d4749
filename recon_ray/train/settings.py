"""Plain settings of a training, without the configuration objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FitSettings:
    """Plain settings of a fit.

    Args:
        epochs: Epochs of the schedule.
        max_steps: Stop after this many optimizer steps, None for the whole schedule.
        global_batch_size: Samples an optimizer step over all workers.
        micro_batch_size: Most samples a worker holds at once.
        activation_checkpointing: Compute activations again in the backward pass.
        seed: Seed of weights and all sample-wise random numbers.
        warmup_epochs: Epochs of warm-up.
        min_lr: Learning rate at the ends of the schedule.
        protocol: ``reference`` trains epochs 0..epochs with the rate of the epoch before, as the
            published code; ``sound`` trains exactly ``epochs`` with a rate per step.
        extra_epoch: Whether ``reference`` trains that last epoch; segmentation does not.
        clip_norm: Largest L2 norm of the gradient, None for no clipping.
        double_step: Step, clip, and step again with the same gradient, as the published part
            segmentation does.
        precision: ``fp32`` or ``bf16`` (autocast of the transformer).
        compile: ``default`` or ``max`` compiles augmentation and model, ``off`` does not.
        cuda_graph: Replay the whole step as one CUDA graph where that is possible: on a GPU, with
            one worker or a flat exchange of gradients.
        gradient_exchange: ``bucketed`` exchanges gradients while others are still computed,
            ``flat`` all at once afterwards.
        gradient_precision: ``bf16`` halves what the workers exchange, ``fp32`` does not.
        bucket_megabytes: Gradients that the workers exchange at once if bucketed.
        sync_batch_norm: Reduce batch-norm statistics over the workers.
        log_every_steps: Steps between two records.
        commit_every_seconds: Seconds between two checkpoints, as rank 0 counts them.
        validate_every_epochs: Epochs between two validations, None for none; the last epoch is
            always validated.
        validate_from_epoch: First epoch (from 0) that is validated.
        select: Value of the validation whose highest one marks the best checkpoint.
    """

    epochs: int
    global_batch_size: int
    max_steps: int | None = None
    micro_batch_size: int | None = None
    activation_checkpointing: bool = False
    seed: int = 0
    warmup_epochs: float = 10.0
    min_lr: float = 1e-6
    protocol: Literal["sound", "reference"] = "sound"
    extra_epoch: bool = True
    clip_norm: float | None = None
    double_step: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: Literal["off", "default", "max"] = "off"
    cuda_graph: bool = True
    gradient_exchange: Literal["bucketed", "flat"] = "bucketed"
    gradient_precision: Literal["fp32", "bf16"] = "fp32"
    bucket_megabytes: float = 25.0
    sync_batch_norm: bool = True
    log_every_steps: int = 20
    commit_every_seconds: float = 60.0
    validate_every_epochs: int | None = None
    validate_from_epoch: int = 0
    select: str | None = None

    @property
    def total_epochs(self) -> int:
        """Epochs that are trained."""
        return self.epochs + (1 if self.protocol == "reference" and self.extra_epoch else 0)

    def validates(self, epoch: int) -> bool:
        """Return whether there is a validation at the end of an epoch, counted from 0.

        The published code validates after epochs 0, n, 2n, ...; ``sound`` after n, 2n, ... epochs.
        """
        every = self.validate_every_epochs
        if every is None or epoch < self.validate_from_epoch:
            return False
        number = epoch if self.protocol == "reference" else epoch + 1
        return number % every == 0 or epoch + 1 == self.total_epochs
