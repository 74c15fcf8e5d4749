"""Every option of every job: its type, range, default and meaning.

The models are frozen and refuse unknown keys; ``--help`` is generated from the descriptions. Search
order and error messages are in :mod:`recon_ray.config.loader`.
"""

from recon_ray.config.schema.base import (
    ClusterSection,
    JobConfig,
    ProtocolConfig,
    RunSection,
    RuntimeSection,
    Section,
)
from recon_ray.config.schema.benchmark import (
    BenchmarkConfig,
    IngestBenchmarkSection,
    StepBenchmarkSection,
    TrainingBenchmarkSection,
    Variant,
)
from recon_ray.config.schema.data import (
    DataSection,
    PrepareConfig,
    PrepareSection,
    SetSection,
)
from recon_ray.config.schema.doctor import (
    DoctorConfig,
    DoctorSection,
)
from recon_ray.config.schema.downstream import (
    ClassificationDataSection,
    ClassificationEvalSection,
    ClassificationTrainSection,
    ClassifierSection,
    EvaluateConfig,
    EvaluatedDataSection,
    FinetuneConfig,
    VotingSection,
)
from recon_ray.config.schema.embed import (
    EmbedConfig,
    EmbeddedDataSection,
    EmbedSection,
)
from recon_ray.config.schema.fewshot import (
    FewshotConfig,
    FewshotSection,
)
from recon_ray.config.schema.partseg import (
    PartsegConfig,
    PartsegDataSection,
    PartsegEvalSection,
    PartsegModelSection,
)
from recon_ray.config.schema.pretrain import (
    LossSection,
    PretrainConfig,
    PretrainEvalSection,
    ValidationSection,
)
from recon_ray.config.schema.probes import (
    EvaluatedSetSection,
    LinearProbeConfig,
    ProbeSection,
    TextOnlySection,
    ZeroshotConfig,
    ZeroshotSection,
)
from recon_ray.config.schema.reproduce import (
    PublishedSetSection,
    ReproduceConfig,
    ReproduceSection,
    RowsSection,
    SetsSection,
)
from recon_ray.config.schema.retrieve import (
    PlainImageSection,
    RetrievalSection,
    RetrievalTeachersSection,
    RetrieveConfig,
)
from recon_ray.config.schema.sweep import (
    SweepConfig,
    SweepSection,
    TrialSection,
)
from recon_ray.config.schema.teachers import (
    CachedDataSection,
    CacheSection,
    CacheTeachersConfig,
    EncodersSection,
)
from recon_ray.config.schema.training import (
    ImageEncoderSection,
    ImageTeacherSection,
    ModelSection,
    OptimSection,
    TeacherSection,
    TextTeacherSection,
    TrainingConfig,
    TrainSection,
)
from recon_ray.config.schema.visualize import (
    ShownDataSection,
    VisualizeConfig,
    VisualizeSection,
)
from recon_ray.config.schema.weights import (
    ForeignModelSection,
    ImportWeightsConfig,
)

__all__ = [
    "BenchmarkConfig",
    "CacheSection",
    "CacheTeachersConfig",
    "CachedDataSection",
    "ClassificationDataSection",
    "ClassificationEvalSection",
    "ClassificationTrainSection",
    "ClassifierSection",
    "ClusterSection",
    "DataSection",
    "DoctorConfig",
    "DoctorSection",
    "EmbedConfig",
    "EmbedSection",
    "EmbeddedDataSection",
    "EncodersSection",
    "EvaluateConfig",
    "EvaluatedDataSection",
    "EvaluatedSetSection",
    "FewshotConfig",
    "FewshotSection",
    "FinetuneConfig",
    "ForeignModelSection",
    "ImageEncoderSection",
    "ImageTeacherSection",
    "ImportWeightsConfig",
    "IngestBenchmarkSection",
    "JobConfig",
    "LinearProbeConfig",
    "LossSection",
    "ModelSection",
    "OptimSection",
    "PartsegConfig",
    "PartsegDataSection",
    "PartsegEvalSection",
    "PartsegModelSection",
    "PlainImageSection",
    "PrepareConfig",
    "PrepareSection",
    "PretrainConfig",
    "PretrainEvalSection",
    "ProbeSection",
    "ProtocolConfig",
    "PublishedSetSection",
    "ReproduceConfig",
    "ReproduceSection",
    "RetrievalSection",
    "RetrievalTeachersSection",
    "RetrieveConfig",
    "RowsSection",
    "RunSection",
    "RuntimeSection",
    "Section",
    "SetSection",
    "SetsSection",
    "ShownDataSection",
    "StepBenchmarkSection",
    "SweepConfig",
    "SweepSection",
    "TeacherSection",
    "TextOnlySection",
    "TextTeacherSection",
    "TrainSection",
    "TrainingBenchmarkSection",
    "TrainingConfig",
    "TrialSection",
    "ValidationSection",
    "Variant",
    "VisualizeConfig",
    "VisualizeSection",
    "VotingSection",
    "ZeroshotConfig",
    "ZeroshotSection",
]
