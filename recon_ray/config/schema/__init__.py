"""Every option of every job: its type, range, default and meaning.

The models are frozen and refuse unknown keys; ``--help`` is generated from the descriptions. Search
order and error messages are in :mod:`recon_ray.config.loader`.
"""

from recon_ray.config.schema.base import (
    ClusterSection,
    JobConfig,
    RunSection,
    RuntimeSection,
    Section,
)
from recon_ray.config.schema.data import (
    DataSection,
    PrepareConfig,
    PrepareSection,
)
from recon_ray.config.schema.pretrain import (
    LossSection,
    PretrainConfig,
    PretrainEvalSection,
)
from recon_ray.config.schema.training import (
    ImageTeacherSection,
    ModelSection,
    OptimSection,
    TeacherSection,
    TextTeacherSection,
    TrainSection,
)

__all__ = [
    "ClusterSection",
    "DataSection",
    "ImageTeacherSection",
    "JobConfig",
    "LossSection",
    "ModelSection",
    "OptimSection",
    "PrepareConfig",
    "PrepareSection",
    "PretrainConfig",
    "PretrainEvalSection",
    "RunSection",
    "RuntimeSection",
    "Section",
    "TeacherSection",
    "TextTeacherSection",
    "TrainSection",
]
