"""A text teacher that reads its features from a file, for use without a text model."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from recon_ray.data.format.files import file_sha256
from recon_ray.errors import TeacherError, TeacherNameError
from recon_ray.teachers.prompts import NUM_PROMPTS, prompts
from recon_ray.teachers.protocol import TextTeacher
from recon_ray.teachers.specification import Specification
from recon_ray.teachers.weights_file import check_pin

SUFFIXES = (".npz", ".parquet")


class TableTextTeacher(TextTeacher):
    """Stored features of the texts of a file.

    Args:
        name: Name in its identity.
        path: A ``.npz`` with ``classes`` (C,), ``text`` (C, P, D) and perhaps ``scale``, by which
            the features are multiplied; or a ``.parquet`` with ``text`` and ``feature``, P rows a
            text that follow each other. P is 60, the prompts in their order
            (:func:`recon_ray.teachers.prompts.prompts`), or 1, the text as it is.
        sha256: Hash of the file.

    Raises:
        TeacherError: If the file holds something else.
    """

    _features: Tensor

    def __init__(self, name: str, path: Path, sha256: str) -> None:
        texts, features = _read(path)
        identity = {"name": name, "tag": path.name, "sha256": sha256}
        super().__init__(identity=identity, dim=features.shape[2], precision="fp32")
        self.path = path
        self.texts = texts
        as_it_is = features.shape[1] == 1
        sentences = [s for text in texts for s in ([text] if as_it_is else prompts(text))]
        self._rows = {sentence: row for row, sentence in enumerate(sentences)}
        self.register_buffer("_features", features.flatten(0, 1), persistent=False)
        self.freeze()

    def forward(self, texts: list[str]) -> Tensor:
        """Return features (T, dim) of texts.

        Raises:
            TeacherError: If the file has none of a text.
        """
        unknown = next((text for text in texts if text not in self._rows), None)
        if unknown is not None:
            raise TeacherError(
                f"{self.path}: it has no features of the text {unknown!r}, only of "
                f"{_some(self.texts)}; add it to the file, or choose another teacher"
            )
        return self._features[[self._rows[text] for text in texts]]


def create_table_teacher(
    specification: Specification, *, sha256: str | None = None
) -> TableTextTeacher:
    """Create the teacher of ``table:<file>``, where everything after the first colon is the file.

    Raises:
        TeacherError: If the file is missing, another one than pinned, or holds something else.
    """
    path = Path(specification.text.partition(":")[2])
    if path.suffix not in SUFFIXES or not path.is_file():
        raise TeacherNameError(
            f"Teacher {specification.text!r}: there is no file {path} of features; give "
            "table:<file.npz> or table:<file.parquet>."
        )
    found = file_sha256(path)
    check_pin(specification.text, found, sha256)
    return TableTextTeacher(specification.family, path, found)


def _read(path: Path) -> tuple[list[str], Tensor]:
    """Read texts (C) and their features (C, P, D) float32."""
    try:
        texts, features = _read_npz(path) if path.suffix == ".npz" else _read_parquet(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise TeacherError(
            f"{path}: it cannot be read as a table of text features ({error}); see Teachers in "
            "jobs/README.md for its layout"
        ) from error
    shape = features.shape
    if features.ndim != 3 or len(texts) != shape[0] or shape[1] not in (1, NUM_PROMPTS):
        raise TeacherError(
            f"{path}: holds features of shape {tuple(shape)} for {len(texts)} texts; expected "
            f"(texts, {NUM_PROMPTS} prompts or 1, width)"
        )
    if len(set(texts)) != len(texts) or not np.isfinite(features).all():
        raise TeacherError(f"{path}: a text is there twice, or a feature is not finite; mend it")
    return texts, torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))


def _read_npz(path: Path) -> tuple[list[str], np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        features = np.asarray(file["text"], dtype=np.float32)
        scale = float(file["scale"]) if "scale" in file else 1.0
        return [str(text) for text in file["classes"]], scale * features


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(path, columns=["text", "feature"])
    texts = table["text"].to_pylist()
    column = table["feature"].combine_chunks()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    rows = np.stack(column.to_pylist()).astype(np.float32)
    distinct = list(dict.fromkeys(texts))
    each = len(texts) // len(distinct)
    if texts != [text for text in distinct for _ in range(each)]:
        raise ValueError("the rows of a text do not follow each other, equally many each")
    return distinct, rows.reshape(len(distinct), each, -1)


def _some(texts: list[str]) -> str:
    shown = ", ".join(repr(text) for text in texts[:5])
    return f"{shown} and {len(texts) - 5} more" if len(texts) > 5 else shown
