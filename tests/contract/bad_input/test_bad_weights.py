"""Foreign weights that cannot be imported."""

from __future__ import annotations

import os

import pytest
import torch
from job_runs import Jobs


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
