"""The shapes, texts and pictures of a set in the teachers' spaces, searched by each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recon_ray.config.sections.training import ImageEncoderSection, TextTeacherSection
from recon_ray.data.format.files import read_parts
from recon_ray.data.format.schema import points_to_numpy
from recon_ray.data.format.shards import ShardFile
from recon_ray.data.format.stored_features import StoredFeatures
from recon_ray.data.loading.batches import filled
from recon_ray.data.loading.images import load_images
from recon_ray.models.recon import Embedder
from recon_ray.tasks.feature_extraction import FrozenEvaluation, Tally, load_embedder
from recon_ray.tasks.retrieve.config import RetrievalSection
from recon_ray.tasks.retrieve.ranks import NO_GROUP, Items, nearest, search_metrics
from recon_ray.tasks.teacher_features import image_transform, make_image_teacher, make_text_teacher
from recon_ray.tasks.zeroshot.evaluation import class_vectors, encode_texts
from recon_ray.teachers.cache import StoredBank
from recon_ray.teachers.protocol import ImageTeacher
from recon_ray.train.metrics import gather_rows
from recon_ray.train.runtime import EvaluationRuntime


@dataclass(frozen=True)
class Texts:
    """The texts of a set, and the text of each shape.

    Attributes:
        teacher: The text teacher.
        use_prompts: Put each text into the 60 prompts.
        texts: T distinct texts.
        numbers: Sample id to number of the shape's text, :data:`NO_GROUP` for none.
        bank: Stored features and their texts.
    """

    teacher: TextTeacherSection
    use_prompts: bool
    texts: tuple[str, ...] = ()
    numbers: Mapping[int, int] | None = None
    bank: tuple[StoredBank, tuple[str, ...]] | None = None

    def encode(self, device: torch.device, queries: Sequence[str] = ()) -> Tensor:
        """Return features of the queries, else of the set's texts: (T, D) on the device."""
        if self.bank is not None and not queries:
            bank, of_bank = self.bank
            position = {text: row for row, text in enumerate(of_bank)}
            found = bank.read(of_bank)[[position[text] for text in self.texts]]
        else:
            teacher = make_text_teacher(self.teacher)
            texts = queries or self.texts
            found = encode_texts(teacher, texts, device, use_prompts=self.use_prompts)
        return class_vectors(found).to(device)


@dataclass(frozen=True)
class Pictures:
    """The first picture of every shape of a set.

    Attributes:
        teacher: The image teacher.
        stored: Features that are stored already.
        files: Files of pictures, and the number of rows that are read of each.
    """

    teacher: ImageEncoderSection
    stored: StoredFeatures | None = None
    files: tuple[tuple[ShardFile, int], ...] = ()

    def features(self, runtime: EvaluationRuntime, batch_size: int) -> dict[int, Tensor]:
        """Return sample id to feature (D,); shapes without a picture are absent."""
        if self.stored is not None:
            table = self.stored.read()
            features = points_to_numpy(table[self.stored.column])  # (B, K, D)
            has = filled(features)
            first = features[np.arange(len(features)), has.argmax(axis=1)].astype(np.float32)
            ids, found = table["sample_id"].to_numpy()[has.any(axis=1)], first[has.any(axis=1)]
            return dict(zip(ids.tolist(), torch.from_numpy(found), strict=True))
        teacher = make_image_teacher(self.teacher).to(runtime.device)
        ids, rows = [], []
        for some, views in self._batches(runtime, batch_size):
            ids.append(torch.tensor(some))
            rows.append(encode_pictures(teacher, self.teacher, views, some))
        none = torch.zeros(0, teacher.dim, device=runtime.device)
        numbers = gather_rows(torch.cat([torch.zeros(0).long(), *ids]).to(runtime.device))
        return dict(zip(numbers.tolist(), gather_rows(torch.cat([none, *rows])), strict=True))

    def _batches(
        self, runtime: EvaluationRuntime, batch_size: int
    ) -> Iterator[tuple[list[int], list[bytes]]]:
        """Read sample ids and first pictures of this worker's files."""
        for path, count in self.files[runtime.rank :: runtime.world_size]:
            left = count
            for part in read_parts(path, ["sample_id", "views"], batch_size):
                rows = part.slice(0, left).to_pylist()
                left -= len(rows)
                rows = [row for row in rows if row["views"]]
                if rows:
                    yield [r["sample_id"] for r in rows], [r["views"][0] for r in rows]
                if not left:
                    break


def encode_pictures(
    teacher: ImageTeacher,
    options: ImageEncoderSection,
    pictures: Sequence[bytes],
    sample_ids: Sequence[int],
) -> Tensor:
    """Return features (B, D) of encoded pictures as they are, on the teacher's device.

    Raises:
        DataError: If one does not decode; the message names its sample id.
    """
    images = load_images(
        [[picture] for picture in pictures],
        sample_ids,
        epoch=0,
        seed=0,
        transform=image_transform(teacher, options),
        num_threads=torch.get_num_threads(),
    )
    return teacher.encode(images)


@dataclass(frozen=True)
class Query:
    """A query in words, or a file of a picture, a mesh or a cloud.

    Attributes:
        text: The words, or the file.
        kind: Kind of the query.
        picture: The encoded picture.
        points: (N, 3) points of the shape, y up.
    """

    text: str
    kind: Literal["words", "picture", "shape"]
    picture: bytes = b""
    points: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class RetrievalEvaluation(FrozenEvaluation):
    """Measurement of a search, or answers to queries.

    Attributes:
        options: Splits and number of answers.
        texts: The texts, None to leave them out.
        pictures: The pictures, None to leave them out.
        queries: Queries to answer; without any, the search is measured.
    """

    options: RetrievalSection
    texts: Texts | None
    pictures: Pictures | None
    queries: tuple[Query, ...] = ()

    def run(self, runtime: EvaluationRuntime) -> dict[str, Any]:
        """Return ``directions``, the metrics of each, or ``found``, a list a query; and counts."""
        model = load_embedder(self.weights, **self.sizes).to(runtime.device)
        tally = Tally()
        placed = runtime.inference.place(model, runtime.device)
        clouds, ids = self._clouds(placed, runtime, tally)
        result: dict[str, Any] = {"shapes": len(ids), "counts": tally.counts()}
        if self.queries:
            found = [self._found(model, query, clouds, runtime.device) for query in self.queries]
            return result | {
                "found": [_rows(cosines, ids[places.numpy()]) for cosines, places in found]
            }
        return result | {"directions": self._directions(clouds, ids, runtime)}

    def _clouds(
        self, model: Embedder, runtime: EvaluationRuntime, tally: Tally
    ) -> tuple[dict[str, Tensor], np.ndarray]:
        """Return features of all shapes by space, on the device, and their sample ids."""
        encode = partial(_project, model)
        parts = [
            self.extract(encode, runtime, split, tally=tally, labeled=False)
            for split in self.options.splits
        ]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        spaces = ("text", "image")
        features = {name: torch.from_numpy(whole[name]) for name in spaces if name in whole}
        return {k: v.to(runtime.device) for k, v in features.items()}, whole["sample_id"]

    def _directions(
        self, clouds: Mapping[str, Tensor], ids: np.ndarray, runtime: EvaluationRuntime
    ) -> dict[str, dict[str, float]]:
        device = runtime.device
        found = {}
        if self.texts is not None:
            assert self.texts.numbers is not None
            numbers = [self.texts.numbers.get(int(i), NO_GROUP) for i in ids]
            shapes = Items(clouds["text"], torch.tensor(numbers, device=device))
            features = self.texts.encode(device)
            texts = Items(features, torch.arange(len(features), device=device))
            found["cloud_to_text"] = search_metrics(shapes, texts)
            found["text_to_cloud"] = search_metrics(texts, shapes)
        if self.pictures is not None:
            of = self.pictures.features(runtime, self.batch_size)
            places = [place for place, i in enumerate(ids) if int(i) in of]
            if places:
                features = torch.stack([of[int(ids[place])] for place in places]).to(device)
                pictures = Items(features, torch.tensor(places, device=device))
                shapes = Items(clouds["image"], torch.arange(len(ids), device=device))
                found["cloud_to_image"] = search_metrics(shapes, pictures)
                found["image_to_cloud"] = search_metrics(pictures, shapes)
        return {name: metrics for name, metrics in found.items() if metrics}

    def _found(
        self, model: Embedder, query: Query, clouds: Mapping[str, Tensor], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return cosines and positions of the shapes that are nearest to a query."""
        if query.kind == "words":
            assert self.texts is not None
            spaces = {"text": self.texts.encode(device, [query.text])}
        elif query.kind == "picture":
            assert self.pictures is not None
            teacher = make_image_teacher(self.pictures.teacher).to(device)
            feature = encode_pictures(teacher, self.pictures.teacher, [query.picture], [0])
            spaces = {"image": feature}
        else:
            points = torch.tensor(query.points, dtype=torch.float32, device=device)[None]
            zero = torch.zeros(1, dtype=torch.int64, device=device)
            spaces = _project(model, self.choice(points, zero))
        count = min(self.options.top_k, len(next(iter(clouds.values()))))
        gallery = {name: clouds[name] for name in spaces}
        cosines, places = nearest(_joined(spaces), _joined(gallery), count)
        return cosines[0].cpu(), places[0].cpu()


def _project(model: Embedder, points: Tensor) -> dict[str, Tensor]:
    """Return features of clouds in the space of each teacher of the model."""
    tokens = model.forward_features(points)
    found = {}
    if model.text_proj is not None:
        found["text"] = model.project_text(tokens)
    if model.image_proj is not None:
        found["image"] = model.project_image(tokens)
    return found


def _joined(spaces: Mapping[str, Tensor]) -> Tensor:
    """Return unit vectors side by side: their cosine is the mean of the spaces' cosines."""
    units = [F.normalize(value.float(), dim=-1) for _, value in sorted(spaces.items())]
    return torch.cat(units, dim=-1)


def _rows(cosines: Tensor, sample_ids: np.ndarray) -> list[dict[str, float]]:
    pairs = zip(cosines.tolist(), np.atleast_1d(sample_ids).tolist(), strict=True)
    return [{"cosine": cosine, "sample_id": sample_id} for cosine, sample_id in pairs]
