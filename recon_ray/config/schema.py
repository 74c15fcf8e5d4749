"""Every option of every job: its type, range, default and meaning.

The models are frozen and refuse unknown keys; ``--help`` is generated from the descriptions. Search
order and error messages are in :mod:`recon_ray.config.loader`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all sections: frozen, strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class RunSection(Section):
    """Identity of a run. The same name and storage continue the same run."""

    name: str | None = Field(
        None, description="Run name; by default made from the job, the preset and the time."
    )
    storage: str = Field(
        "runs",
        description="Folder or URI in which the run's own folder is made; seen by all nodes.",
    )
    seed: int = Field(0, ge=0, description="Seed of weights, order, augmentation and masks.")

    @field_validator("name")
    @classmethod
    def _is_one_folder(cls, name: str | None) -> str | None:
        """The name becomes a folder in the storage: nothing that leads elsewhere, or is hidden."""
        if name and (name.startswith(".") or not name.isprintable() or {*"/\\"} & {*name}):
            raise ValueError(
                f"expected the name of one folder, found {name!r}; leave out slashes and a leading "
                "dot, run.storage says where the folder is made"
            )
        return name


class RuntimeSection(Section):
    """How the numbers are computed."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device of the workers; auto takes the GPU that Ray assigned, if any."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Precision of the transformer; auto is bf16 on GPUs and fp32 on CPUs."
    )
    ops_backend: Literal["auto", "compiled", "pointnet2_ops", "reference"] = Field(
        "auto",
        description="Implementation of the point operations; auto takes the fastest there is.",
    )
    threads: Count | None = Field(
        None,
        description="Threads of torch in a worker; by default the cores divided by the workers.",
    )


class ClusterSection(Section):
    """Where and on how many workers the job runs."""

    address: str | None = Field(
        None,
        description="Ray address to join; by default the job's own, else a local one.",
    )
    workers: Annotated[int, Field(ge=0)] | tuple[Count, Count] = Field(
        1, description="Data-parallel workers, or [min, max]; 0 runs in this process, without Ray."
    )
    cpus_per_worker: Positive = Field(1.0, description="Logical CPUs that a worker reserves.")
    gpus_per_worker: NonNegative | None = Field(
        None, description="GPUs that a worker reserves; by default 1 if the cluster has enough."
    )
    max_failures: int = Field(
        3, ge=-1, description="Worker failures that are survived by restarting; -1 is no limit."
    )
    resize_interval_seconds: Positive = Field(
        300.0, description="How often an elastic run looks for added or lost resources."
    )
    start_timeout_seconds: Positive = Field(
        60.0, description="How long to wait for workers to start before trying again."
    )
    object_store_bytes: Annotated[int, Field(ge=80_000_000)] = Field(
        500_000_000, description="Object store of a Ray that the job starts itself."
    )

    @property
    def max_workers(self) -> int:
        """Largest number of workers that may run."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def allowed_workers(self) -> range:
        """Every number of workers that may occur (1 when running without Ray)."""
        if isinstance(self.workers, int):
            return range(max(self.workers, 1), max(self.workers, 1) + 1)
        return range(self.workers[0], self.workers[1] + 1)

    @model_validator(mode="after")
    def _ordered(self) -> ClusterSection:
        if not isinstance(self.workers, int) and self.workers[0] > self.workers[1]:
            raise ValueError(f"workers must be [min, max], found {list(self.workers)}")
        return self


class PrepareSection(Section):
    """How a source becomes a prepared set."""

    num_points: Count = Field(2048, description="Points kept a shape.")
    up_axis: Literal["y", "z", "x"] = Field(
        "y", description="Axis that points up in the source; clouds and meshes are turned to y up."
    )
    views: Annotated[int, Field(ge=0)] = Field(
        4, description="Images a shape: rendered where the source gives none; 0 writes no images."
    )
    image_size: Annotated[int, Field(ge=16)] = Field(
        224, description="Height and width of the stored images in pixels."
    )
    image_format: Literal["png", "jpeg"] = Field(
        "png", description="Encoding of the stored images."
    )
    samples_per_shard: Count = Field(512, description="Shapes in one Parquet file.")
    limit: Count | None = Field(
        None, description="Prepare at most this many shapes, shared by the splits in proportion."
    )
    points_dtype: Literal["float32", "float16"] = Field(
        "float32",
        description="Stored type of the coordinates; float16 stores unit-sphere clouds.",
    )
    seed: int = Field(0, ge=0, description="Seed of shuffling into shards and of surface sampling.")
    max_quarantine_fraction: Fraction = Field(
        0.01, description="Fail when more than this part of the shapes cannot be read."
    )
    test_fraction: Fraction = Field(
        0.1, description="Held out a class where the source has no split of its own (custom)."
    )
    table: str | None = Field(
        None,
        description="CSV or Parquet table (file, caption, label, split, image) (custom).",
    )
    train_per_class: Count = Field(40, description="Training shapes a category (synthetic).")
    test_per_class: Count = Field(15, description="Held-out shapes a category (synthetic).")
    processes: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Shards built at once without Ray; by default one a core."
    )


class DataSection(Section):
    """Which prepared set is read, and how."""

    path: str = Field(
        "datasets/synthetic", description="Folder of a prepared set (jobs/prepare.py)."
    )
    num_points: Count = Field(1024, description="Points drawn from each stored cloud.")
    mode: Literal["auto", "stream", "cached", "shared"] = Field(
        "auto",
        description="Ingest: shared (exact global order, blocks in the object store), cached "
        "(materialized stream), stream (read again each epoch); auto takes shared if it fits.",
    )
    limit: Count | None = Field(None, description="Use at most this many training shapes.")
    text: Literal["category", "caption"] = Field(
        "category",
        description="What the text teacher reads: class texts in 60 prompts, or captions.",
    )
    normalize: bool = Field(True, description="Centre each cloud and scale it to the unit sphere.")
    shuffle_buffer: Count = Field(
        2048, description="Rows mixed in memory a worker in the modes stream and cached."
    )
    verify: bool = Field(
        True,
        description="Compare the SHA-256 of every shard with the manifest before training (about a "
        "second a GB).",
    )
    create: Literal["never", "synthetic"] = Field(
        "never", description="Prepare the synthetic set at data.path when there is none."
    )


class ModelSection(Section):
    """A preset and what differs from it. An empty value keeps the preset's."""

    preset: Literal["nano", "tiny", "small", "base"] = Field(
        "base", description="Named architecture (paper: tiny, small, base; nano is for CPUs)."
    )
    embed_dim: Count | None = Field(None, description="Width of the transformer.")
    depth: Count | None = Field(None, description="Encoder blocks.")
    num_heads: Count | None = Field(None, description="Attention heads; must divide embed_dim.")
    decoder_depth: Count | None = Field(None, description="Decoder blocks.")
    num_groups: Count | None = Field(None, description="Point patches a cloud.")
    group_size: Count | None = Field(None, description="Points in a patch.")
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Part of the patches that is hidden."
    )
    mask_type: Literal["random", "block"] | None = Field(
        None, description="Hide random patches, or the ones nearest to a random centre."
    )
    drop_path: Fraction | None = Field(None, description="Stochastic depth of the last block.")

    def overrides(self) -> dict[str, int | float | str]:
        """The architecture options that differ from the preset."""
        return {k: v for k, v in self.model_dump().items() if k != "preset" and v is not None}


class ImageTeacherSection(Section):
    """The frozen image encoder whose features the image token learns."""

    name: str | None = Field(
        "descriptor",
        description="open_clip:<arch>[:<tag or file>], timm:<arch>[:<tag or file>], descriptor, "
        "or null for none.",
    )
    sha256: str | None = Field(
        None, description="Expected SHA-256 of the weights; another one is refused."
    )
    mode: Literal["online"] = Field("online", description="Run the teacher in the training step.")
    augment: Literal["reference", "none"] = Field(
        "reference",
        description="Image augmentation: the paper's (flip, crop, RandAugment) or none.",
    )
    statistics: Literal["teacher", "imagenet"] = Field(
        "teacher",
        description="Normalization constants: the teacher's own, or ImageNet's as the paper.",
    )
    bgr: bool = Field(False, description="Swap the color channels, as the paper's reader does.")


class TextTeacherSection(Section):
    """The frozen text encoder whose features the text token learns."""

    name: str | None = Field(
        "descriptor", description="open_clip:<arch>[:<tag or file>], descriptor, or null for none."
    )
    sha256: str | None = Field(
        None, description="Expected SHA-256 of the weights; another one is refused."
    )


class TeacherSection(Section):
    """The two frozen teachers."""

    image: ImageTeacherSection = Field(ImageTeacherSection(), description="Image teacher.")
    text: TextTeacherSection = Field(TextTeacherSection(), description="Text teacher.")


class TrainSection(Section):
    """Length of training, batch, logging and commits."""

    epochs: Count = Field(300, description="Passes over the training split.")
    steps: Count | None = Field(
        None, description="Stop after this many optimizer steps; the schedule does not change."
    )
    global_batch_size: Count = Field(
        128,
        description="Shapes an optimizer step, over all workers; never depends on their number.",
    )
    micro_batch_size: Count | None = Field(
        None,
        description="Largest number of shapes a worker holds at once; the rest is accumulated.",
    )
    clip_norm: Positive | None = Field(
        None, description="Clip the gradient's L2 norm; null for none."
    )
    sync_batch_norm: bool = Field(
        True,
        description="Batch-norm statistics over all workers, so that their number has no effect.",
    )
    log_every_steps: Count = Field(20, description="Steps between two records of the metrics.")
    commit_every_seconds: Positive = Field(60.0, description="Seconds between two checkpoints.")
    keep_checkpoints: Count = Field(3, description="Checkpoints kept besides the best.")


class OptimSection(Section):
    """AdamW and its cosine schedule."""

    lr: Positive = Field(5e-4, description="Peak learning rate for the global batch.")
    weight_decay: NonNegative = Field(0.05, description="Decoupled weight decay.")
    warmup_epochs: NonNegative = Field(10.0, description="Epochs of linear warm-up.")
    min_lr: NonNegative = Field(1e-6, description="Learning rate at both ends of the schedule.")


class LossSection(Section):
    """Which losses are summed."""

    chamfer: Literal["l1", "l2"] = Field(
        "l2", description="Chamfer distance: squared (l2) or plain (l1)."
    )
    self_contrast: bool = Field(
        False, description="Add the self-contrast of the class token over the batch's categories."
    )


class PretrainEvalSection(Section):
    """Evaluation on held-out shapes before and after pre-training."""

    enabled: bool = Field(True, description="Evaluate before and after training.")
    split: str = Field("test", description="Held-out split.")
    batch_size: Count = Field(64, description="Shapes a worker encodes at once.")
    shots: Count = Field(5, description="Labels a class of the small linear probe.")
    draws: Count = Field(10, description="Random draws that the small probe is averaged over.")
    svm_c: Positive = Field(0.075, description="C of the linear SVM (paper: 0.075).")
    limit: Count | None = Field(None, description="Use at most this many shapes a split.")


class JobConfig(Section):
    """What every job has."""

    run: RunSection = Field(RunSection(), description="Identity of the run.")
    runtime: RuntimeSection = Field(RuntimeSection(), description="How the numbers are computed.")
    cluster: ClusterSection = Field(ClusterSection(), description="Where and on how many workers.")


class PrepareConfig(JobConfig):
    """jobs/prepare.py: a data set to sharded Parquet."""

    source: Literal["synthetic", "custom"] = Field(
        "synthetic", description="Kind of source: procedural shapes, or a folder of shapes."
    )
    input: Path | None = Field(None, description="Folder of the source (not for synthetic).")
    output: Path = Field(
        Path("datasets/synthetic"), description="Folder of the prepared set that is written."
    )
    verify: Path | None = Field(
        None, description="Only check this prepared set: hashes, row counts, schema."
    )
    prepare: PrepareSection = Field(PrepareSection(), description="How the source is converted.")

    @model_validator(mode="after")
    def _has_input(self) -> PrepareConfig:
        if self.source != "synthetic" and self.input is None and self.verify is None:
            raise ValueError(f"source={self.source} needs input=<folder>")
        return self


class PretrainConfig(JobConfig):
    """jobs/pretrain.py: ReCon pre-training on a prepared set."""

    protocol: Literal["sound", "reference"] = Field(
        "sound", description="reference repeats the published code's habits, see the README."
    )
    resume: str = Field(
        "auto",
        description="auto continues the run of this name, never sets it aside, a path starts from "
        "that checkpoint.",
    )
    data: DataSection = Field(DataSection(), description="What is read.")
    prepare: PrepareSection = Field(PrepareSection(), description="How data.create makes the set.")
    model: ModelSection = Field(ModelSection(), description="The student.")
    teacher: TeacherSection = Field(TeacherSection(), description="The teachers.")
    train: TrainSection = Field(TrainSection(), description="Length and batch.")
    optim: OptimSection = Field(OptimSection(), description="Optimizer.")
    loss: LossSection = Field(LossSection(), description="Losses.")
    eval: PretrainEvalSection = Field(
        PretrainEvalSection(), description="Evaluation before and after."
    )

    @model_validator(mode="after")
    def _limits_what_is_indexed(self) -> PretrainConfig:
        streamed = self.data.mode in ("stream", "cached") and self.cluster.max_workers > 0
        if streamed and self.data.limit is not None:
            raise ValueError(
                f"data.limit={self.data.limit} needs data.mode=shared, found data.mode="
                f"{self.data.mode}; leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _divisible(self) -> PretrainConfig:
        batch = self.train.global_batch_size
        wrong = [w for w in self.cluster.allowed_workers if batch % w]
        if wrong:
            raise ValueError(
                f"train.global_batch_size={batch} is not divisible by "
                f"{', '.join(map(str, wrong))} workers (cluster.workers); choose a multiple"
            )
        return self
