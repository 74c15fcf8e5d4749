from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from weights_samples import published

from recon_ray.config.sections.foreign_model import PublishedName
from recon_ray.errors import CheckpointError
from recon_ray.models.presets import MODELS
from recon_ray.weights.catalog import CATALOG, find_published
from recon_ray.weights.find import find_weights


def test_the_published_rows_are_listed() -> None:
    assert len(CATALOG) == 9
    assert all(row.kind in MODELS for row in CATALOG.values())
    assert "93.4" in CATALOG["recon_svm"].result
    sizes = {"num_heads": 6, "num_groups": 512, "group_size": 32}
    assert CATALOG["recon_modelnet40_8k"].sizes == sizes
    assert get_args(PublishedName) == tuple(CATALOG)


def test_a_local_copy_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(published("classifier"), tmp_path / "recon_scanobjectnn_obj_bg.pth")
    monkeypatch.setenv("RECON_WEIGHTS", str(tmp_path))
    weights = find_weights("recon_scanobjectnn_obj_bg", stream=None)
    assert weights.sizes == {"num_heads": 6, "num_groups": 128, "group_size": 32}
    assert weights.extra["num_points"] == 2048
    assert "stream" not in weights.architecture
    with pytest.raises(CheckpointError, match="trained with num_heads=6, but num_heads=2"):
        find_weights("recon_scanobjectnn_obj_bg", num_heads=2)
    with pytest.raises(CheckpointError, match=r"holds no recon_svm\{\.safetensors,\.pth,\.pt\}"):
        find_published("recon_svm")


def test_what_is_absent_has_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECON_WEIGHTS", raising=False)
    message = "name that in RECON_WEIGHTS, or give the file's path"
    with pytest.raises(CheckpointError, match=message):
        find_weights("recon_pretrain")
    with pytest.raises(CheckpointError, match=r"recon: there is no such file.*names are recon_pre"):
        find_weights("recon")
    message = r"x\.pth: there is no such file or folder; give a run"
    with pytest.raises(CheckpointError, match=message):
        find_weights(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no checkpoint there; give a run folder"):
        find_weights(tmp_path)
