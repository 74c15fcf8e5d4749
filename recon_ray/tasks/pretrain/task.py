"""ReCon pre-training: masked reconstruction and distillation from teachers (paper, section 3).

The two-tower ablation is trained in the same way; nothing probes its features.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from recon_ray.data.format.stored_features import StoredFeatures
from recon_ray.data.loading.batches import Batch, BatchOptions
from recon_ray.data.loading.device_augmentation import DeviceAugmentation
from recon_ray.errors import ConfigError
from recon_ray.losses.pretrain import pretrain_losses
from recon_ray.models.cloud import svm_pool
from recon_ray.models.presets import MODELS, preset_sizes
from recon_ray.models.recon import Recon
from recon_ray.models.twotower import TwoTower
from recon_ray.points import transforms
from recon_ray.points.random import SampleGenerator
from recon_ray.protocols import REFERENCE_SKIP
from recon_ray.tasks.feature_extraction import PointChoice, extract_features
from recon_ray.tasks.linear_probe.probes import few_label_accuracy, svm_accuracy
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.pretrain.validation import Validation, ValidationPlan
from recon_ray.tasks.teacher_features import (
    StoredTeachers,
    image_transform,
    make_image_teacher,
    make_text_teacher,
)
from recon_ray.tasks.zeroshot.evaluation import (
    accuracy,
    class_vectors,
    encode_texts,
    zeroshot_predictions,
)
from recon_ray.teachers.cache import StoredBank
from recon_ray.teachers.protocol import ImageTeacher, TextTeacher
from recon_ray.train.optim import parameter_groups
from recon_ray.train.runtime import Runtime

logger = logging.getLogger(__name__)

Student: TypeAlias = Recon | TwoTower


class PretrainModule(nn.Module):
    """The student with its losses, as the training loop calls it.

    Args:
        model: The student.
        chamfer: ``l1`` or ``l2``.
    """

    def __init__(self, model: Student, *, chamfer: Literal["l1", "l2"]) -> None:
        super().__init__()
        self.model = model
        self.chamfer = chamfer

    def forward(self, batch: Batch, source: SampleGenerator) -> dict[str, Tensor]:
        """Return the named losses of a batch."""
        output = self.model(batch["points"], source=source)
        return pretrain_losses(
            output,
            image_features=batch.get("image_features"),
            text_features=batch.get("text_features"),
            labels=batch["label"] if output.contrast is not None else None,
            chamfer=self.chamfer,
        )


class PretrainTask:
    """Pre-training of one student on one prepared set.

    Args:
        config: The job's configuration.
        texts: Distinct texts of the set in the order of ``text_index``: classes, or captions.
        num_classes: Labeled classes of the set; 0 where it has no labels.
        stored: Features of the teachers that need not be computed.
        validation: What is validated on after an epoch, if anything.
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
    ) -> None:
        self.config = config
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
        has_text = stored.text is not None or stored.bank is not None
        self._text_teacher = None if has_text else make_text_teacher(options.text)
        self.validation = None if validation is None else Validation(validation)
        self._bank: Tensor | None = None
        image, text = self._image_source(), self._text_source()
        self._image_dim = None if image is None else image.dim
        self._text_dim = None if text is None else text.dim
        self.has_unused_parameters = (
            self._image_dim is None and self._text_dim is None and not config.loss.self_contrast
        )

    def _image_source(self) -> ImageTeacher | StoredFeatures | None:
        return self.stored.image or self.image_teacher

    def _text_source(self) -> TextTeacher | StoredFeatures | StoredBank | None:
        return self.stored.text or self.stored.bank or self._text_teacher

    @property
    def teachers(self) -> dict[str, dict[str, str] | None]:
        """Names, tags and hashes of the teachers, for the run's records."""
        image, text = self._image_source(), self._text_source()
        return {
            "image": None if image is None else dict(image.identity),
            "text": None if text is None else dict(text.identity),
        }

    def architecture(self) -> dict[str, Any]:
        """Constructor arguments of the student."""
        config = self.config
        kind, preset = config.model.kind, config.model.preset
        arguments = {**preset_sizes(preset, kind), **config.model.overrides()}
        arguments |= {"image_dim": self._image_dim, "text_dim": self._text_dim}
        if kind == "recon":
            arguments["self_contrast"] = config.loss.self_contrast
        if config.flags.skips_origin:
            arguments["fps_min_sq_norm"] = config.flags.min_sq_norm
        return arguments

    def build(self) -> nn.Module:
        """Make the student with its losses."""
        model = MODELS[self.config.model.kind](**self.architecture())
        assert isinstance(model, Student)
        return PretrainModule(model, chamfer=self.config.loss.chamfer)

    def stored_model(self, module: nn.Module) -> Student:
        """The student without its losses."""
        assert isinstance(module, PretrainModule)
        return module.model

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Groups with and without weight decay (published rule, no head)."""
        optim = self.config.optim
        model = self.stored_model(module)
        return parameter_groups(model, lr=optim.lr, weight_decay=optim.weight_decay)

    def batch_options(self) -> BatchOptions:
        """What the batches of this task hold."""
        config, teacher = self.config, self.image_teacher
        by_caption = config.data.text == "caption"
        return BatchOptions(
            seed=config.run.seed,
            images=None if teacher is None else image_transform(teacher, config.teacher.image),
            augment_on="host" if self._augmentation is None else config.teacher.image.augment_on,
            text=config.data.text,
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
            assert teacher is not None
            self.validation.encode_classes(teacher, device)
        if self.stored.bank is not None and self._bank is None:
            self._bank = self.stored.bank.read(self.texts).to(device)
        elif self._text_teacher is not None and self._bank is None:
            use_prompts = self.config.data.text == "category"
            bank = encode_texts(self._text_teacher, self.texts, device, use_prompts=use_prompts)
            self._bank = bank.to(device)
            self._text_teacher = None

    def prepare_on_device(self, batch: Batch, source: SampleGenerator) -> Batch:
        """Draw points, normalize and turn the clouds, add the teachers' features.

        The order is the published one: sub-sample, normalize, rotate about the up axis.
        """
        points = transforms.random_subset(batch["points"], self.config.data.num_points, source)
        if self.config.data.normalize:
            points = transforms.normalize(points)
        enriched = {"points": transforms.rotate_y(points, source), "label": batch["label"]}
        stored = ("image_features", "text_features")
        enriched |= {name: batch[name] for name in stored if name in batch}
        if self._bank is not None:
            prompt = source.randint(self._bank.shape[1], 1).squeeze(1)
            enriched["text_features"] = self._bank[batch["text_index"], prompt]
        if self.image_teacher is not None:
            enriched["image_features"] = self.image_teacher.encode(self._images(batch))
        return enriched

    def _images(self, batch: Batch) -> Tensor:
        """Images for the teacher; those that came with parameters are augmented here."""
        images = batch["images"]
        if "image_parameters" not in batch:
            return images
        assert self._augmentation is not None
        return self._augmentation(images, batch["image_parameters"])

    # -- evaluation ------------------------------------------------------------------------------

    def evaluate(self, module: nn.Module, runtime: Runtime, *, when: str) -> dict[str, float]:
        """Probes and zero-shot accuracy on the held-out split, before and after training.

        Every sample is counted once, whatever the number of workers; rank 0 fits the probes.

        Raises:
            ConfigError: If there are too few labeled shapes for the probes.
        """
        options = self.config.eval
        if not options.enabled or self.num_classes < 2:
            return {}
        model = self._probed(module)
        test = self._extract(model, runtime, options.split)
        train = self._extract(model, runtime, "+".join(self.config.data.train_splits))
        self._check_labels(train["label"], test["label"])  # on every rank: none must wait for one
        if runtime.rank != 0:
            return {}
        metrics = self._zeroshot(test, when)
        data = (train["features"], train["label"], test["features"], test["label"])
        probe = few_label_accuracy(
            *data, shots=options.shots, draws=options.draws, seed=0, c=options.svm_c
        )
        metrics |= {f"probe_{when}": probe, "chance": 1 / self.num_classes}
        return metrics | {f"probe_full_{when}": svm_accuracy(*data, c=options.svm_c)}

    def validate(self, module: nn.Module, runtime: Runtime) -> dict[str, float]:
        """The value that chooses the best epoch, if there is a validation."""
        if self.validation is None:
            return {}
        return self.validation.run(self._probed(module), runtime)

    def _probed(self, module: nn.Module) -> Recon:
        """The student as the probes read it; the configuration refuses them for two towers."""
        model = self.stored_model(module)
        assert isinstance(model, Recon)
        return model

    def records(self) -> dict[str, Any]:
        """Nothing goes with the model beyond its architecture."""
        return {}

    def _check_labels(self, train: np.ndarray, test: np.ndarray) -> None:
        classes, options = len(np.unique(train)), self.config.eval
        if classes < 2 or len(test) == 0:
            limit = "null" if options.limit is None else options.limit
            raise ConfigError(
                f"eval.limit={limit}: that leaves {classes} classes of labeled shapes in 'train' "
                f"and {len(test)} shapes in {options.split!r}, but the probes need two classes to "
                "learn from and a shape to test on; raise it and data.limit, or set "
                "eval.enabled=false"
            )

    def _zeroshot(self, test: dict[str, np.ndarray], when: str) -> dict[str, float]:
        if self._bank is None or self.config.data.text != "category":
            return {}
        vectors = class_vectors(self._bank.cpu())
        predicted = zeroshot_predictions(torch.from_numpy(test["text"]), vectors)
        name = "zeroshot_before" if when == "before" else "zeroshot_accuracy"
        return {name: accuracy(predicted, torch.from_numpy(test["label"]))}

    def _extract(self, model: Recon, runtime: Runtime, split: str) -> dict[str, np.ndarray]:
        """Features of all labeled rows of a split, in order of sample id, on every rank."""

        def encode(points: Tensor) -> dict[str, Tensor]:
            tokens = model.forward_features(points)
            text = tokens[:, 2] if model.text_proj is None else model.project_text(tokens)
            return {"features": svm_pool(tokens), "text": text}

        options = self.config.eval
        return extract_features(
            encode,
            runtime,
            split,
            self._evaluation_points(),
            batch_size=options.batch_size,
            limit=options.limit,
        )

    def _evaluation_points(self) -> PointChoice:
        """Points of the probes before and after: the same subset of a sample every time."""
        config = self.config
        return PointChoice(
            config.data.num_points,
            how="fps" if config.flags.fps_probe_points else "random",
            normalize="subset" if config.data.normalize else "none",
            min_sq_norm=REFERENCE_SKIP,
        )
