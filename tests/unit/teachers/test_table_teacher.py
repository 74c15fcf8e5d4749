"""The teacher that looks text features up in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recon_ray.errors import ConfigError, TeacherError
from recon_ray.teachers.bank import text_bank
from recon_ray.teachers.create import create_image_teacher, create_text_teacher
from recon_ray.teachers.prompts import NUM_PROMPTS, prompts

CLASSES = ["chair", "night_stand"]
FEATURES = np.random.default_rng(0).standard_normal((2, NUM_PROMPTS, 8)).astype(np.float32)


def npz(folder: Path, **more: object) -> Path:
    path = folder / "features.npz"
    values = {"classes": np.array(CLASSES), "text": FEATURES.astype(np.float16), **more}
    np.savez(path, **values)
    return path


def parquet(path: Path, texts: list[str], rows: np.ndarray) -> Path:
    pq.write_table(pa.table({"text": texts, "feature": list(rows)}), path)
    return path


def test_a_bank_holds_the_scaled_rows_of_the_file_in_the_order_of_the_prompts(tmp_path):
    teacher = create_text_teacher(f"table:{npz(tmp_path)}")
    bank = text_bank(teacher, ["night_stand", "chair"])
    expected = torch.from_numpy(FEATURES.astype(np.float16).astype(np.float32))
    assert torch.equal(bank, expected[[1, 0]])
    assert teacher.dim == 8
    assert teacher.identity["name"] == "table"
    assert len(teacher.identity["sha256"]) == 64
    with pytest.raises(TeacherError, match=r"no features of the text 'sofa\.', only of 'chair'"):
        teacher.encode([prompts("sofa")[0]])
    teacher = create_text_teacher(f"table:{npz(tmp_path, scale=10.0)}")
    assert torch.equal(text_bank(teacher, CLASSES), 10 * expected)


def test_a_parquet_table_gives_the_same_or_serves_captions(tmp_path):
    texts = [name for name in CLASSES for _ in range(NUM_PROMPTS)]
    path = parquet(tmp_path / "bank.parquet", texts, FEATURES.reshape(-1, 8))
    bank = text_bank(create_text_teacher(f"table:{path}"), CLASSES)
    assert torch.equal(bank, torch.from_numpy(FEATURES))
    path = parquet(tmp_path / "bank.parquet", CLASSES, FEATURES[:, 0])
    bank = text_bank(create_text_teacher(f"table:{path}"), CLASSES, use_prompts=False)
    assert torch.equal(bank, torch.from_numpy(FEATURES[:, :1]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"text": FEATURES[:, :3]}, r"shape \(2, 3, 8\) for 2 texts"),
        ({"classes": np.array(["chair"])}, r"shape \(2, 60, 8\) for 1 texts"),
        ({"classes": np.array(["chair", "chair"])}, "a text is there twice"),
        ({"text": np.full_like(FEATURES, np.nan)}, "a feature is not finite"),
        ({"classes": np.array([{}, {}])}, "cannot be read as a table"),
    ],
)
def test_another_content_is_refused(tmp_path, more, message):
    with pytest.raises(TeacherError, match=message):
        create_text_teacher(f"table:{npz(tmp_path, **more)}")


def test_files_that_are_missing_foreign_or_not_pinned_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file nowhere\.npz"):
        create_text_teacher("table:nowhere.npz")
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK")
    with pytest.raises(TeacherError, match="cannot be read as a table"):
        create_text_teacher(f"table:{broken}")
    with pytest.raises(TeacherError, match="is pinned"):
        create_text_teacher(f"table:{npz(tmp_path)}", sha256=64 * "0")
    with pytest.raises(ConfigError, match="cannot encode images"):
        create_image_teacher(f"table:{tmp_path / 'features.npz'}")


def test_rows_of_a_text_that_do_not_follow_each_other_are_refused(tmp_path):
    texts = [name for _ in range(NUM_PROMPTS) for name in CLASSES]
    path = parquet(tmp_path / "bank.parquet", texts, FEATURES.reshape(-1, 8))
    with pytest.raises(TeacherError, match="do not follow each other"):
        create_text_teacher(f"table:{path}")
