"""ReCon pre-training: masked reconstruction and distillation from teachers (paper, section 3).

One step, from top to bottom: :meth:`PretrainTask.prepare_on_device` (batch, augmentation, teachers)
and :meth:`PretrainModule.forward` (student, losses, sum). The two-tower ablation is trained in the
same way; nothing probes its features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from recon_ray.data.format.stored_features import StoredFeatures
from recon_ray.data.loading.batches import Batch, BatchOptions
from recon_ray.data.loading.device_augmentation import DeviceAugmentation
from recon_ray.losses.pretrain import pretrain_losses
from recon_ray.models.presets import MODELS, preset_sizes, whole_arguments
from recon_ray.models.recon import Recon
from recon_ray.models.twotower import TwoTower
from recon_ray.points import transforms
from recon_ray.points.random import SampleGenerator
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.pretrain.evaluation import probe_student
from recon_ray.tasks.pretrain.validation import Validation, ValidationPlan
from recon_ray.tasks.teacher_features import (
    StoredTeachers,
    image_transform,
    make_image_teacher,
    make_text_teacher,
)
from recon_ray.tasks.zeroshot.evaluation import encode_texts
from recon_ray.teachers.cache import StoredBank
from recon_ray.teachers.protocol import ImageTeacher, TextTeacher
from recon_ray.train.optim import parameter_groups
from recon_ray.train.runtime import Runtime
from recon_ray.weights.find import training_records

Student: TypeAlias = Recon | TwoTower


class PretrainModule(nn.Module):
    """The student with its losses; the training loop calls it."""

    def __init__(self, model: Student, *, chamfer: Literal["l1", "l2"]) -> None:
        super().__init__()
        self.model = model
        self.chamfer = chamfer

    def forward(self, batch: Batch, source: SampleGenerator) -> dict[str, Tensor]:
        """Return the named () losses of a prepared batch; ``loss`` is their sum."""
        # Grouping, masking, encoder, decoder; the queries learn from the teachers' features.
        output = self.model(batch["points"], source=source)  # (B, N, 3) -> (B, M, K, 3), (B, d)
        return pretrain_losses(
            output,
            image_features=batch.get("image_features"),  # (B, d)
            text_features=batch.get("text_features"),  # (B, d)
            labels=batch["label"] if output.contrast is not None else None,  # (B,)
            chamfer=self.chamfer,
        )


class PretrainTask:
    """Pre-training of one student on one prepared set.

    Args:
        config: The job's configuration.
        texts: Distinct texts of the set in the order of ``text_index``: classes, or captions that
            are not stored.
        num_classes: Labeled classes of the set; 0 where it has no labels.
        stored: Features of the teachers that need not be computed.
        validation: What is validated on after an epoch, if anything.
        up_axis: Axis that pointed up in the files of the set.
    """

    name = "pretrain"

    def __init__(
        self,
        config: PretrainConfig,
        *,
        texts: Sequence[str],
        num_classes: int,
        stored: StoredTeachers | None = None,
        validation: ValidationPlan | None = None,
        up_axis: str = "y",
    ) -> None:
        self.config = config
        self.up_axis = up_axis
        self.texts = list(texts)
        self.num_classes = num_classes
        self.stored = stored = stored or StoredTeachers()
        options = config.teacher
        self.image_teacher = (
            None
            if stored.image is not None or options.image.name is None
            else make_image_teacher(options.image, precision="step")
        )
        self._augmentation = (
            None
            if self.image_teacher is None or options.image.augment == "none"
            else DeviceAugmentation(self.image_teacher.image_size)
        )
        has_text = options.text.name is None or stored.text is not None or stored.bank is not None
        self._text_teacher = None if has_text else make_text_teacher(options.text)
        self.validation = None if validation is None else Validation(validation)
        self._bank: Tensor | None = None
        image, text = self._image_source(), self._text_source()
        self._image_dim = None if image is None else image.dim
        self._text_dim = None if text is None else text.dim

    # -- the step --------------------------------------------------------------------------------

    def prepare_on_device(self, batch: Batch, source: SampleGenerator) -> Batch:
        """Draw points, normalize and rotate the clouds, add the teachers' features.

        The order is the published one: sub-sample, normalize, rotate about the up axis.
        """
        data = self.config.data
        points = transforms.random_subset(batch["points"], data.num_points, source)  # (B, N, 3)
        if data.normalize:
            points = transforms.normalize(points)
        prepared = {"points": transforms.rotate_y(points, source), "label": batch["label"]}
        for name in ("image_features", "text_features"):  # (B, d): of a cache, or of the source
            if name in batch:
                prepared[name] = batch[name]
        if self._bank is not None:  # (C, P, d): a random prompt of each text
            prompt = source.randint(self._bank.shape[1], 1).squeeze(1)  # (B,)
            prepared["text_features"] = self._bank[batch["text_index"], prompt]
        if self.image_teacher is not None:
            prepared["image_features"] = self.image_teacher.encode(self._images(batch))
        return prepared

    def _images(self, batch: Batch) -> Tensor:
        """(B, 3, H, W) images for the teacher; those with drawn parameters are augmented here."""
        images = batch["images"]
        if "image_parameters" not in batch:
            return images
        assert self._augmentation is not None
        return self._augmentation(images, batch["image_parameters"])

    # -- model and data --------------------------------------------------------------------------

    def _image_source(self) -> ImageTeacher | StoredFeatures | None:
        return self.stored.image or self.image_teacher

    def _text_source(self) -> TextTeacher | StoredFeatures | StoredBank | None:
        return self.stored.text or self.stored.bank or self._text_teacher

    @property
    def teachers(self) -> dict[str, dict[str, str] | None]:
        """Return names, tags and hashes of the teachers, for the run's records."""
        image, text = self._image_source(), self._text_source()
        return {
            "image": None if image is None else dict(image.identity),
            "text": None if text is None else dict(text.identity),
        }

    def architecture(self) -> dict[str, Any]:
        """Return the constructor arguments of the student."""
        config = self.config
        kind, preset = config.model.kind, config.model.preset
        arguments = {**preset_sizes(preset, kind), **config.model.overrides()}
        arguments |= {"image_dim": self._image_dim, "text_dim": self._text_dim}
        if kind == "recon":
            arguments["self_contrast"] = config.loss.self_contrast
        if config.flags.skips_origin:
            arguments["fps_min_sq_norm"] = config.flags.min_sq_norm
        return whole_arguments(kind, arguments)

    def build(self) -> nn.Module:
        """Make the student with its losses."""
        model = MODELS[self.config.model.kind](**self.architecture())
        assert isinstance(model, Student)
        return PretrainModule(model, chamfer=self.config.loss.chamfer)

    def stored_model(self, module: nn.Module) -> Student:
        """Return the student without its losses."""
        assert isinstance(module, PretrainModule)
        return module.model

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Return groups with and without weight decay (published rule, no head)."""
        optim = self.config.optim
        model = self.stored_model(module)
        return parameter_groups(model, lr=optim.lr, weight_decay=optim.weight_decay)

    def batch_options(self) -> BatchOptions:
        """Return the content of a batch."""
        config, teacher = self.config, self.image_teacher
        has_bank = config.teacher.text.name is not None and self.stored.text is None
        by_caption = has_bank and config.data.text == "caption"
        return BatchOptions(
            seed=config.run.seed,
            images=None if teacher is None else image_transform(teacher, config.teacher.image),
            augment_on="host" if self._augmentation is None else config.teacher.image.augment_on,
            text="caption" if by_caption else "category",
            captions=self.texts if by_caption else (),
            features={one.column: one.draw for one in self.stored.features},
        )

    def on_device(self, device: torch.device) -> None:
        """Move the image teacher, and encode every text once; the text teacher then goes."""
        if self.image_teacher is not None:
            self.image_teacher.to(device)
        if self._augmentation is not None:
            self._augmentation.to(device)
        if self.validation is not None and self.validation.plan.options.kind == "zeroshot":
            teacher = self._text_teacher or make_text_teacher(self.config.teacher.text)
            self.validation.encode_classes(teacher, device)
        if self.stored.bank is not None and self._bank is None:
            self._bank = self.stored.bank.read(self.texts).to(device)
        elif self._text_teacher is not None and self._bank is None:
            use_prompts = self.config.data.text == "category"
            bank = encode_texts(self._text_teacher, self.texts, device, use_prompts=use_prompts)
            self._bank = bank.to(device)
            self._text_teacher = None

    # -- evaluation ------------------------------------------------------------------------------

    def evaluate(self, module: nn.Module, runtime: Runtime, *, when: str) -> dict[str, float]:
        """Return probes and zero-shot accuracy on the held-out split.

        Raises:
            ConfigError: If there are too few labeled shapes for the probes.
        """
        config = self.config
        if not config.eval.enabled or self.num_classes < 2:
            return {}
        by_class = self._bank is not None and config.data.text == "category"
        return probe_student(
            self._probed(module),
            runtime,
            config,
            bank=self._bank.cpu() if self._bank is not None and by_class else None,
            num_classes=self.num_classes,
            when=when,
        )

    def validate(self, module: nn.Module, runtime: Runtime, *, epoch: int) -> dict[str, float]:
        """Return the value that chooses the best epoch, if there is a validation."""
        if self.validation is None:
            return {}
        return self.validation.run(self._probed(module), runtime)

    def _probed(self, module: nn.Module) -> Recon:
        """Return the student for the probes; the configuration refuses them for two towers."""
        model = self.stored_model(module)
        assert isinstance(model, Recon)
        return model

    def records(self) -> dict[str, Any]:
        """Return what later jobs with the weights take over."""
        config = self.config
        data, teachers = config.data.model_dump(), config.teacher.model_dump()
        return training_records(data, teachers, up_axis=self.up_axis)
