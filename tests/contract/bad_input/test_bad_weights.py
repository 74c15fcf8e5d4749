"""Foreign weights that cannot be imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from job_runs import Jobs
from job_samples import save_model

from recon_ray.weights.find import find_weights
from recon_ray.weights.weight_files import save_reference


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"base_model": {"bert.layer.0.weight": torch.zeros(2)}}, "another family of models"),
        ({"base_model": {"model.global_query": torch.zeros(2)}}, r"of ReCon\+\+, another family"),
        ({"base_model": os.system}, r"more than plain data \((posix|nt)\.system\) and is refused"),
        ({"epoch": 300}, "no weights found"),
        (b"cut off", "cannot be read as a weights file .* damaged or of another format"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(jobs: Jobs, content: object, message: str) -> None:
    path = jobs.folder / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    output = jobs.folder / "weights.safetensors"
    jobs.run("import_weights", f"input={path}", f"output={output}").refused(
        1, rf"weights\.pth: .*{message}"
    )
    assert jobs.left_behind() == []
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ("output=x.safetensors", 2, "input=<file> must be given"),
        ("input=a.pth output=x.bin", 2, r"output=x\.bin must end in \.safetensors"),
        ("input=a.pth output=x.pth", 2, r"output=x\.pth must end in \.safetensors"),
        ("input=/absent/a.pth output=x.safetensors", 2, "there is no such file or folder"),
        ("input=r.pth output=x.safetensors kind=classifier", 1, "kind=classifier was asked"),
        ("input=r.pth output=x.safetensors model.num_heads=5", 1, "with num_heads=2, but num_h"),
        ("input=r.pth output=x.safetensors kind=bert", 2, "kind"),
    ],
)
def test_what_cannot_be_imported_is_refused(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, options: str, status: int, message: str
) -> None:
    monkeypatch.chdir(jobs.folder)
    own = find_weights(save_model(Path("r.safetensors"), decoder_depth=1, image_dim=3, text_dim=3))
    save_reference(Path("r.pth"), own)
    before = sorted(Path().rglob("*"))
    jobs.run("import_weights", *options.split()).refused(status, message)
    assert sorted(Path().rglob("*")) == before
