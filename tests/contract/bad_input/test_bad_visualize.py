"""Files and shapes that cannot be shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from job_runs import Jobs
from job_samples import save_model

from recon_ray.data.format.prepared import PreparedSet

SET = "data.path={set}"


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ("", 2, r"data\.path=<prepared set> or files=\[a\.ply, \.\.\.\] must be given"),
        ("files=[cut.ply]", 1, r"cut\.ply: cannot be read \("),
        ("files=[notes.docx]", 1, r"notes\.docx: cannot read files of this type; use one of"),
        ("data.path=. shapes=[cup]", 1, r"is not a complete prepared set"),
        ("files=[cut.ply] shapes=3", 2, r"shapes are of a prepared set; give data\.path=<folder"),
        ("files=[cut.ply] init_from=cut.pth", 1, r"cut\.pth: "),
        (f"{SET} data.split=val", 2, r"data\.split=val: .* has the splits train, test; choose one"),
        (f"{SET} shapes=[chair]", 2, r"shapes: .* has no shape chair in this split; "),
        (f"{SET} visualize.blocks=[4]", 2, r"blocks 1 to 2, found 4"),
        (f"{SET} data.num_points=7", 2, r": 7 points are too few for the model's 8 patches of 8"),
        (f"{SET} files=[absent.ply]", 1, r"absent\.ply: file not found"),
        ("data.path=/absent", 2, r"data\.path=/absent: no such folder; give the folder of a pre"),
        (f"{SET} cluster.workers=2", 2, r"cluster\.workers must be 0: this job runs in one proc"),
        (f"{SET} visualize.mask_ratio=0.01", 1, r"mask_ratio must hide 1\.\.7 of num_groups=8 p"),
        (
            f"{SET} visualize.kinds=[reconstruction] init_from=embedder.safetensors "
            "data.num_points=64",
            2,
            "has no decoder and reconstructs nothing; give the weights",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused(
    jobs: Jobs,
    finished: Path,
    tiny_prepared: PreparedSet,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(jobs.folder)
    header = b"ply\nformat ascii 1.0\nelement vertex 9\nproperty float x\n"
    for name, content in (("cut.ply", header), ("notes.docx", b"x"), ("cut.pth", b"PK")):
        Path(name).write_bytes(content)
    save_model(Path("embedder.safetensors"), "embedder")
    before = jobs.left_behind()
    given = options if "init_from" in options else f"init_from={finished} {options}"
    jobs.run("visualize", *given.format(set=tiny_prepared.path).split()).refused(status, message)
    assert jobs.left_behind() == before
