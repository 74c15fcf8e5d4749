"""Options of jobs that train: model, teachers, length of training, optimizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recon_ray.config.sections.common import (
    Count,
    Fraction,
    Location,
    NonNegative,
    Positive,
    ProtocolConfig,
    Section,
    TeacherName,
)
from recon_ray.config.sections.data import SetSection


class ModelSection(Section):
    """A preset and changes to it. null is the preset's value."""

    kind: Literal["recon", "twotower"] = Field(
        "recon", description="recon, or the paper's ablation twotower with separate encoders."
    )
    preset: Literal["nano", "tiny", "small", "base"] = Field(
        "base", description="Named architecture (paper: tiny, small, base; nano is for CPUs)."
    )
    embed_dim: Count | None = Field(None, description="Width of the transformer.")
    depth: Count | None = Field(None, description="Encoder blocks.")
    num_heads: Count | None = Field(None, description="Attention heads; must divide embed_dim.")
    decoder_depth: Count | None = Field(None, description="Decoder blocks.")
    num_groups: Count | None = Field(None, description="Point patches of a cloud.")
    group_size: Count | None = Field(None, description="Points in a patch.")
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Fraction of the patches that is masked."
    )
    mask_type: Literal["random", "block"] | None = Field(
        None, description="Mask random patches, or the ones nearest to a random center."
    )
    drop_path: Fraction | None = Field(None, description="Stochastic depth of the last block.")

    def overrides(self) -> dict[str, int | float | str]:
        """Return the architecture options that differ from the preset."""
        return self.model_dump(exclude={"kind", "preset"}, exclude_none=True)


class ImageEncoderSection(Section):
    """A frozen image encoder and its preprocessing."""

    name: TeacherName | None = Field(
        "descriptor",
        description="open_clip:<arch>[:<tag or file>], timm:<arch>[:<tag or file>], descriptor, "
        "source for features that the data set came with, or null for none.",
    )
    sha256: str | None = Field(None, description="SHA-256 of the weights; another is refused.")
    augment: Literal["reference", "none"] = Field(
        "reference", description="The paper's image augmentation (flip, crop, RandAugment) or none."
    )
    statistics: Literal["teacher", "imagenet"] = Field(
        "teacher", description="Normalization constants of the teacher, or of ImageNet (paper)."
    )
    bgr: bool = Field(False, description="Swap the color channels, as the paper's reader does.")


class ImageTeacherSection(ImageEncoderSection):
    """The frozen image encoder whose features the image token learns."""

    mode: Literal["online", "cached"] = Field(
        "online", description="Run the teacher in the step, or read its cache (cache_teachers.py)."
    )
    cache: Location | None = Field(None, description="Cache folder; by default the data set's.")
    augment_on: Literal["auto", "host", "device"] = Field(
        "auto", description="Where an online teacher's images are augmented; auto is a GPU if any."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ImageTeacherSection:
        if self.augment_on == "device" and self.augment != "reference":
            raise ValueError(
                "teacher.image.augment_on=device needs teacher.image.augment=reference, found "
                f"teacher.image.augment={self.augment}"
            )
        if self.cache is not None and self.mode != "cached":
            raise ValueError(
                f"teacher.image.cache={self.cache} needs teacher.image.mode=cached, found "
                f"teacher.image.mode={self.mode}"
            )
        return self


class TextTeacherSection(Section):
    """The frozen text encoder whose features the text token learns."""

    name: TeacherName | None = Field(
        "descriptor",
        description="open_clip:<arch>[:<tag or file>], descriptor, table:<file> (.npz, .parquet), "
        "source for features that the data set came with, or null for none.",
    )
    sha256: str | None = Field(None, description="SHA-256 of the weights; another is refused.")


class TeacherSection(Section):
    """The two frozen teachers."""

    image: ImageTeacherSection = Field(ImageTeacherSection(), description="Image teacher.")
    text: TextTeacherSection = Field(TextTeacherSection(), description="Text teacher.")


class TrainSection(Section):
    """Length of training, batch, logging and checkpoints."""

    epochs: Count = Field(300, description="Passes over the training split.")
    steps: Count | None = Field(None, description="Stop at this step; the schedule stays the same.")
    global_batch_size: Count = Field(
        128, description="Shapes in an optimizer step over all workers."
    )
    micro_batch_size: Count | None = Field(
        None, description="Most shapes that a worker holds at once; gradients are accumulated."
    )
    activation_checkpointing: bool = Field(
        False, description="Recompute the blocks' activations in backward: less memory, slower."
    )
    clip_norm: Positive | None = Field(None, description="Clip the gradient's norm; null for none.")
    sync_batch_norm: bool = Field(
        True, description="Batch-norm statistics over all workers, whatever their number."
    )
    gradient_precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Precision in which workers sum gradients; bf16 halves the messages."
    )
    gradient_exchange: Literal["bucketed", "flat"] = Field(
        "bucketed",
        description="How several workers exchange gradients: in buckets, while others are still "
        "computed, or flat, all at once afterwards, which lets GPUs replay the step as one graph.",
    )
    bucket_megabytes: Positive = Field(25.0, description="Gradients in a bucket.")
    log_every_steps: Count = Field(20, description="Steps between two records of the metrics.")
    commit_every_seconds: Positive = Field(60.0, description="Seconds between two checkpoints.")
    keep_checkpoints: Count = Field(3, description="Newest checkpoints kept, besides the best.")
    keep_every_steps: Count | None = Field(None, description="Steps between permanent checkpoints.")
    keep_optimizer: bool | None = Field(
        None,
        description="Keep the optimizer's state of a finished run, with which it can be trained "
        "on; by default of all but the trials of sweep, fewshot and reproduce.",
    )
    ledger: bool = Field(
        False, description="Count how often an epoch uses each sample; write ledger.parquet."
    )


class OptimSection(Section):
    """AdamW and its cosine schedule."""

    lr: Positive = Field(5e-4, description="Peak learning rate for the global batch.")
    weight_decay: NonNegative = Field(0.05, description="Decoupled weight decay.")
    warmup_epochs: NonNegative = Field(10.0, description="Epochs of linear warm-up.")
    min_lr: NonNegative = Field(1e-6, description="Learning rate at both ends of the schedule.")


class TrainingConfig(ProtocolConfig):
    """Options of a job that trains a model on a prepared set."""

    resume: Location = Field(
        "auto",
        description="auto continues the run of this name, never sets it aside, a run folder or a "
        "checkpoint in it starts a new run from there.",
    )
    data: SetSection = Field(SetSection(), description="Prepared set.")
    train: TrainSection = Field(TrainSection(), description="Length and batch.")
    optim: OptimSection = Field(OptimSection(), description="Optimizer.")

    @model_validator(mode="after")
    def _reads_one_way(self) -> TrainingConfig:
        """``data.mode`` is how rows reach a worker, ``data.residency`` where it keeps them."""
        data, streams = self.data, ("stream", "cached")
        mode = "stream" if data.residency == "stream" else data.mode
        if mode in streams and self.cluster.max_workers > 0 and data.limit is not None:
            raise ValueError(
                f"data.limit={data.limit} needs data.mode=shared, found data.mode={mode}; "
                "leave one of the two out"
            )
        refused = ("shared",) if data.residency == "stream" else streams
        if data.residency != "auto" and data.mode in refused:
            raise ValueError(
                f"data.residency={data.residency} does not go with data.mode={data.mode}; leave "
                "one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _has_work_for_all(self) -> TrainingConfig:
        batch, most = self.train.global_batch_size, self.cluster.allowed_workers[-1]
        if batch < most:
            raise ValueError(
                f"train.global_batch_size={batch} has no shape for some of {most} workers "
                "(cluster.workers); give a larger batch or fewer workers"
            )
        return self
