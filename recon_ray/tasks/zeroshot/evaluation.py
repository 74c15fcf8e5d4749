"""Zero-shot classification by the cosine with the summed prompt features of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recon_ray.config.sections.training import TextTeacherSection
from recon_ray.models.recon import Embedder
from recon_ray.tasks.classify.confusion import confusion_matrix
from recon_ray.tasks.feature_extraction import (
    FrozenEvaluation,
    Tally,
    load_embedder,
    without_last_batch,
)
from recon_ray.tasks.predictions import (
    CHUNK,
    CLASS_COLUMNS,
    RankedClasses,
    best_classes,
    prediction_file,
)
from recon_ray.tasks.teacher_features import make_text_teacher
from recon_ray.tasks.zeroshot.config import ZeroshotSection
from recon_ray.teachers.bank import text_bank
from recon_ray.teachers.cache import StoredBank
from recon_ray.teachers.protocol import TextTeacher
from recon_ray.train.metrics import gather_rows, is_distributed
from recon_ray.train.runtime import EvaluationRuntime


def encode_texts(
    teacher: TextTeacher, texts: Sequence[str], device: torch.device, *, use_prompts: bool = True
) -> Tensor:
    """Run a text teacher on a device; the workers share the texts, and all features reach each.

    Args:
        teacher: The teacher, which is moved to the device.
        texts: C texts, the same on every worker.
        device: Device of the teacher.
        use_prompts: Put each into the 60 prompts.

    Returns:
        (C, 60, D) on the CPU, or (C, 1, D) without prompts.
    """
    teacher = teacher.to(device)
    world = torch.distributed.get_world_size() if is_distributed() else 1
    rank = torch.distributed.get_rank() if is_distributed() else 0
    share = -(-len(texts) // world)
    mine = texts[rank * share : (rank + 1) * share]
    bank = text_bank(teacher, mine or texts[:1], use_prompts=use_prompts)
    return gather_rows((bank if mine else bank[:0]).to(device))


def class_vectors(bank: Tensor) -> Tensor:
    """Sum the raw prompt features of each class, as published: (C, J, D) to (C, D), normalized."""
    return F.normalize(bank.sum(dim=1), dim=-1)


def nearest_classes(features: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most similar classes of each feature and their cosines, both (B, k).

    Args:
        features: (B, D) projected tokens.
        vectors: (C, D) of unit length.
    """
    found = []
    for rows in features.split(CHUNK):
        cosines = F.normalize(rows.float(), dim=-1) @ vectors.T
        best = best_classes(cosines)
        found.append((best, cosines.gather(1, best)))
    classes, cosines = (torch.cat(parts) for parts in zip(*found, strict=True))
    return classes, cosines


def zeroshot_predictions(features: Tensor, vectors: Tensor) -> Tensor:
    """Return the most similar class of each feature (B, D), the lowest on a tie: (B,) int64."""
    return nearest_classes(features, vectors)[0][:, 0]


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return the fraction of equal entries of (B,) predicted and (B,) true classes."""
    return float(torch.eq(predictions, labels).float().mean())


@dataclass(frozen=True)
class Candidates:
    """The classes to choose from.

    Attributes:
        names: C names.
        texts: Text of each in the prompts.
        of_label: Name number of every label of the set; -1 for a class that cannot be chosen.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    of_label: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ZeroshotEvaluation(FrozenEvaluation):
    """Classification of splits by the texts of the candidates.

    Attributes:
        candidates: The classes.
        options: Token and splits.
        teacher: The text teacher.
        bank: Stored features of the texts.
        drops_last: Leave out an incomplete last batch of the training split, as published.
    """

    candidates: Candidates
    options: ZeroshotSection
    teacher: TextTeacherSection
    bank: StoredBank | None = None
    drops_last: bool = False

    def run(self, runtime: EvaluationRuntime) -> dict[str, Any]:
        """Write the predictions; return ``splits`` and other counts of every split.

        ``splits`` are the confusion matrices, ``predicted`` the shapes of each predicted class,
        ``labeled`` those with a class.
        """
        vectors = class_vectors(self._bank(runtime.device)).cpu()
        model = load_embedder(self.weights, **self.sizes)
        model = runtime.inference.place(model, runtime.device)
        tally = Tally()
        splits, predicted, labeled = {}, {}, {}
        with prediction_file(runtime, CLASS_COLUMNS) as file:
            for split in self.options.splits:
                ranked = self._classify(model, runtime, split, vectors, tally)
                file.add_classes(split, ranked, self.candidates.names)
                predicted[split] = np.bincount(ranked.classes[:, 0], minlength=len(vectors))
                splits[split] = self._confusion(ranked, split)
                labeled[split] = int((ranked.labels >= 0).sum())
        return {
            "splits": {name: matrix.tolist() for name, matrix in splits.items()},
            "predicted": {name: numbers.tolist() for name, numbers in predicted.items()},
            "labeled": labeled,
            "counts": tally.counts(),
        }

    def _bank(self, device: torch.device) -> Tensor:
        texts = self.candidates.texts
        if self.bank is not None:
            return self.bank.read(texts)
        return encode_texts(make_text_teacher(self.teacher), texts, device)

    def _classify(
        self,
        model: Embedder,
        runtime: EvaluationRuntime,
        split: str,
        vectors: Tensor,
        tally: Tally,
    ) -> RankedClasses:
        kind, ratio = self.options.kind, self.options.ratio

        def encode(points: Tensor) -> dict[str, Tensor]:
            return {"feature": model.zeroshot_features(points, kind=kind, ratio=ratio)}

        found = self.extract(encode, runtime, split, tally=tally, labeled=False)
        classes, cosines = nearest_classes(torch.from_numpy(found["feature"]), vectors)
        return RankedClasses(found["sample_id"], found["label"], classes.numpy(), cosines.numpy())

    def _confusion(self, ranked: RankedClasses, split: str) -> np.ndarray:
        """Count pairs of true and predicted classes of the shapes that have one."""
        counted = {"label": ranked.labels, "predicted": ranked.classes[:, 0]}
        has_class = ranked.labels >= 0
        counted = {name: value[has_class] for name, value in counted.items()}
        if self.drops_last and split == "train":
            counted = without_last_batch(counted, self.batch_size, seed=self.choice.seed)
        labels = np.array(self.candidates.of_label)[counted["label"]]
        return confusion_matrix(labels, counted["predicted"], len(self.candidates.names))
