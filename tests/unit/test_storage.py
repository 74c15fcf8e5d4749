"""Names of places: paths, and URIs that say how their store is reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from recon_ray.runs.folder import RunFolder
from recon_ray.storage import absolute, join, open_filesystem, split

QUERY = "?endpoint_override=http://10.0.0.5:9000&region=us-east-1"


@pytest.mark.parametrize(
    ("place", "below"),
    [
        ("runs", "runs/a/b"),
        ("/runs/", "/runs/a/b"),
        ("/what?/runs", "/what?/runs/a/b"),
        ("s3://bucket", "s3://bucket/a/b"),
        ("s3://bucket/runs/", "s3://bucket/runs/a/b"),
        (f"s3://bucket/runs{QUERY}", f"s3://bucket/runs/a/b{QUERY}"),
    ],
)
def test_what_is_below_a_place_is_found_by_the_same_store(place: str, below: str) -> None:
    assert join(place, "a", "b") == below
    assert split(below) == (join(place, "a"), "b")


def test_a_store_reached_by_a_query_holds_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    folder = RunFolder(join(f"s3://bucket/runs{QUERY}", "name"))
    assert open_filesystem(folder.checkpoints)[1] == "bucket/runs/name/checkpoints"
    assert folder.place == folder.uri


def test_relative_paths_are_made_absolute_and_uris_stay() -> None:
    assert absolute("runs") == str(Path("runs").absolute())
    assert absolute("file:///runs") == "file:///runs"


def test_what_is_removed_may_be_a_file_a_folder_or_nothing(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    folder.write("a/b/c.txt", "x")
    folder.write("d.txt", "x")
    for name in ("a", "d.txt", "absent"):
        folder.remove(name)
    assert list(tmp_path.iterdir()) == []
