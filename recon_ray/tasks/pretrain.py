"""ReCon pre-training: masked reconstruction and distillation from teachers (paper, section 3)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from recon_ray.config.schema import PretrainConfig
from recon_ray.data.batches import Batch, BatchOptions
from recon_ray.data.images import ImageTransform
from recon_ray.errors import ConfigError, TeacherError
from recon_ray.losses.pretrain import pretrain_losses
from recon_ray.models.presets import PRESETS
from recon_ray.models.recon import Recon, svm_pool
from recon_ray.models.teachers import (
    ImageTeacher,
    TextTeacher,
    create_image_teacher,
    create_text_teacher,
    text_bank,
)
from recon_ray.points import ops, transforms
from recon_ray.points.random import SampleGenerator
from recon_ray.tasks.linear_probe import few_label_accuracy, svm_accuracy
from recon_ray.tasks.zeroshot import accuracy, class_vectors, zeroshot_predictions
from recon_ray.train.metrics import gather_rows, is_distributed
from recon_ray.train.optim import parameter_groups
from recon_ray.train.runtime import Runtime, evaluation_batches

logger = logging.getLogger(__name__)

#: Squared radius around the origin in which the published sampling never picks a point.
REFERENCE_SKIP = 1e-3


class PretrainModule(nn.Module):
    """The student with its losses, as the training loop calls it.

    Args:
        model: The student.
        chamfer: ``l1`` or ``l2``.
    """

    def __init__(self, model: Recon, *, chamfer: Literal["l1", "l2"]) -> None:
        super().__init__()
        self.model = model
        self.chamfer = chamfer

    def forward(self, batch: Batch, source: SampleGenerator) -> dict[str, Tensor]:
        """Give the named losses of a batch."""
        output = self.model(batch["points"], source=source)
        return pretrain_losses(
            output,
            image_features=batch.get("image_features"),
            text_features=batch.get("text_features"),
            labels=batch["label"] if self.model.contrast_head is not None else None,
            chamfer=self.chamfer,
        )


class PretrainTask:
    """Pre-training of one student on one prepared set.

    Args:
        config: The job's configuration.
        texts: Distinct texts of the set in the order of ``text_index``: classes, or captions.
        num_classes: Labeled classes of the set; 0 where it has no labels.
    """

    name = "pretrain"

    def __init__(self, config: PretrainConfig, *, texts: Sequence[str], num_classes: int) -> None:
        self.config = config
        self.texts = list(texts)
        self.num_classes = num_classes
        self.image_teacher = _image_teacher(config)
        self._text_teacher = _text_teacher(config)
        self._text_dim = None if self._text_teacher is None else self._text_teacher.dim
        self._bank: Tensor | None = None
        self.has_unused_parameters = (
            self.image_teacher is None and self._text_dim is None and not config.loss.self_contrast
        )

    @property
    def teachers(self) -> dict[str, dict[str, str] | None]:
        """Names, tags and hashes of the teachers, for the run's records."""
        text, image = self._text_teacher, self.image_teacher
        return {
            "image": None if image is None else dict(image.identity),
            "text": None if text is None else dict(text.identity),
        }

    def architecture(self) -> dict[str, Any]:
        """Constructor arguments of the student."""
        config = self.config
        arguments = {**PRESETS[config.model.preset], **config.model.overrides()}
        arguments |= {
            "image_dim": None if self.image_teacher is None else self.image_teacher.dim,
            "text_dim": self._text_dim,
            "self_contrast": config.loss.self_contrast,
        }
        if config.protocol == "reference":
            arguments["fps_min_sq_norm"] = REFERENCE_SKIP
        return arguments

    def build(self) -> nn.Module:
        """Make the student with its losses."""
        return PretrainModule(Recon(**self.architecture()), chamfer=self.config.loss.chamfer)

    def stored_model(self, module: nn.Module) -> Recon:
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
        transform = None
        if teacher is not None:
            image = config.teacher.image
            transform = ImageTransform(
                kind=image.augment, image_size=teacher.image_size, bgr=image.bgr
            )
        return BatchOptions(
            seed=config.run.seed,
            images=transform,
            text=config.data.text,
            captions=self.texts if config.data.text == "caption" else (),
        )

    def on_device(self, device: torch.device) -> None:
        """Move the image teacher, and encode every text once; the text teacher then goes."""
        if self.image_teacher is not None:
            self.image_teacher.to(device)
        if self._text_teacher is not None and self._bank is None:
            self._bank = self._encode_texts(self._text_teacher.to(device)).to(device)
            self._text_teacher = None

    def enrich(self, batch: Batch, source: SampleGenerator) -> Batch:
        """Draw points, normalize and turn the clouds, add the teachers' features.

        The order is the published one: sub-sample, normalize, rotate about the up axis.
        """
        points = transforms.random_subset(batch["points"], self.config.data.num_points, source)
        if self.config.data.normalize:
            points = transforms.normalize(points)
        enriched = {"points": transforms.rotate_y(points, source), "label": batch["label"]}
        if self._bank is not None:
            prompt = source.randint(self._bank.shape[1], 1).squeeze(1)
            enriched["text_features"] = self._bank[batch["text_index"], prompt]
        if self.image_teacher is not None:
            enriched["image_features"] = self.image_teacher.encode(batch["images"])
        return enriched

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
        model = self.stored_model(module)
        test = self._extract(model, runtime, options.split)
        train = self._extract(model, runtime, "train")
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
        options = BatchOptions(text="category")
        parts: dict[str, list[Tensor]] = {"sample_id": [], "label": [], "features": [], "text": []}
        for batch in evaluation_batches(
            runtime.table(split),
            options,
            batch_size=self.config.eval.batch_size,
            rank=runtime.rank,
            world_size=runtime.world_size,
            limit=self.config.eval.limit,
        ):
            points = self._evaluation_points(batch, runtime.device)
            tokens = model.forward_features(points)
            parts["features"].append(svm_pool(tokens))
            text = tokens[:, 2]
            parts["text"].append(text if model.text_proj is None else model.text_proj(text))
            parts["sample_id"].append(batch["sample_id"].to(runtime.device))
            parts["label"].append(batch["label"].to(runtime.device))
        whole = {name: gather_rows(torch.cat(tensors)) for name, tensors in parts.items()}
        order = torch.argsort(whole["sample_id"])
        labeled = order[whole["label"][order] >= 0]
        return {name: value[labeled].numpy() for name, value in whole.items()}

    def _evaluation_points(self, batch: Batch, device: torch.device) -> Tensor:
        """Points of an evaluation batch: the same subset of a sample every time."""
        points, count = batch["points"].to(device), self.config.data.num_points
        if count < points.shape[1] and self.config.protocol == "reference":
            points = ops.furthest_point_sample(points, count, min_sq_norm=REFERENCE_SKIP)[1]
        elif count < points.shape[1]:
            source = SampleGenerator(0, batch["sample_id"].to(device))
            points = transforms.random_subset(points, count, source)
        return transforms.normalize(points) if self.config.data.normalize else points

    def _encode_texts(self, teacher: TextTeacher) -> Tensor:
        """(C, 60, D) features of the classes, or (C, 1, D) of captions; shared by the workers."""
        world = torch.distributed.get_world_size() if is_distributed() else 1
        rank = torch.distributed.get_rank() if is_distributed() else 0
        share = -(-len(self.texts) // world)
        mine = self.texts[rank * share : (rank + 1) * share]
        use_prompts = self.config.data.text == "category"
        bank = text_bank(teacher, mine or self.texts[:1], use_prompts=use_prompts)
        return gather_rows((bank if mine else bank[:0]).to(teacher.device))


def _image_teacher(config: PretrainConfig) -> ImageTeacher | None:
    options = config.teacher.image
    if options.name is None:
        return None
    with _naming("teacher.image"):
        return create_image_teacher(
            options.name, sha256=options.sha256, statistics=options.statistics
        )


def _text_teacher(config: PretrainConfig) -> TextTeacher | None:
    options = config.teacher.text
    if options.name is None:
        return None
    with _naming("teacher.text"):
        return create_text_teacher(options.name, sha256=options.sha256)


@contextmanager
def _naming(section: str) -> Iterator[None]:
    """Put the section of the options at the head of a teacher's error."""
    try:
        yield
    except TeacherError as error:
        raise type(error)(f"{section}: {error}") from error
