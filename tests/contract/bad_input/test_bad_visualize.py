"""Files and shapes that cannot be shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from job_runs import Jobs


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ("", 2, r"data\.path=<prepared set> or files=\[a\.ply, \.\.\.\] must be given"),
        ("files=[cut.ply]", 1, r"cut\.ply: cannot be read \("),
        ("files=[notes.docx]", 1, r"notes\.docx: cannot read files of this type; use one of"),
        ("data.path=. shapes=[cup]", 1, r"is not a complete prepared set"),
        (
            "files=[cut.ply] shapes=3",
            2,
            r"shapes are of a prepared set; give data\.path=<folder",
        ),
        ("files=[cut.ply] init_from=cut.pth", 1, r"cut\.pth: "),
    ],
)
def test_what_cannot_be_shown_is_refused(
    jobs: Jobs,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(jobs.folder)
    header = b"ply\nformat ascii 1.0\nelement vertex 9\nproperty float x\n"
    for name, content in (("cut.ply", header), ("notes.docx", b"x"), ("cut.pth", b"PK")):
        Path(name).write_bytes(content)
    before = jobs.left_behind()
    given = options if "init_from" in options else f"init_from={finished} {options}"
    jobs.run("visualize", *given.split()).refused(status, message)
    assert jobs.left_behind() == before
