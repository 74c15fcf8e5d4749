"""Places: paths, and URIs that say how their store is reached; files in both."""

from __future__ import annotations

import errno
import os
import pickle
import secrets
from pathlib import Path

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from recon_ray.errors import ConfigError
from recon_ray.runs.folder import RunFolder
from recon_ray.storage import Place, absolute, join, open_filesystem, split

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


def test_a_store_of_an_unknown_kind_is_refused_like_one_that_pyarrow_refuses() -> None:
    with pytest.raises(pa.ArrowInvalid, match="gopher"):
        open_filesystem("gopher://bucket/runs")


# --- Files ----------------------------------------------------------------------------------------
@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder that does not exist yet."""
    if request.param == "disk":
        return Place.of(tmp_path / "root")
    return Place.of(f"memory://{secrets.token_hex(8)}/root")


def test_what_is_written_is_listed_and_read(root: Place) -> None:
    for name, content in (("a.txt", b"1"), ("b/c/d.txt", b"22"), ("b/e.txt", b"")):
        (root / name).write_bytes(content)
    assert root.files() == {"a.txt": 1, "b/c/d.txt": 2, "b/e.txt": 0}
    assert (root / "b").files() == {"c/d.txt": 2, "e.txt": 0}
    assert root.folders() == [root / "b"]
    file = root / "b/c/d.txt"
    assert file.read_bytes() == b"22"
    with file.open() as opened:
        opened.seek(1)
        assert opened.read() == b"2"
    assert (file.exists(), file.is_file(), file.is_dir()) == (True, True, False)
    assert (root.exists(), root.is_file(), root.is_dir()) == (True, False, True)
    file.write_bytes(memoryview(b"333"))
    assert file.read_bytes() == b"333"
    file.unlink()
    assert root.files() == {"a.txt": 1, "b/e.txt": 0}


def test_what_is_absent_is_empty_or_an_error(root: Place) -> None:
    (root / "here").write_bytes(b"")
    absent = root / "a/b"
    assert (absent.files(), absent.folders()) == ({}, [])
    assert (absent.exists(), absent.is_file(), absent.is_dir()) == (False, False, False)
    absent.unlink()
    with pytest.raises(FileNotFoundError):
        absent.read_bytes()
    with pytest.raises(FileNotFoundError):
        absent.open()


@pytest.mark.parametrize("failing", ["write", "rename"])
def test_a_file_is_whole_or_as_before(
    root: Place, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file, other = root / "a/file.parquet", root / "a/other.parquet"
    file.write_bytes(b"before")
    with monkeypatch.context() as patch:
        if root.is_local:
            patch.setattr(*((os, "fsync") if failing == "write" else (Path, "replace")), refuse)
        else:
            name = "_open" if failing == "write" else "mv"
            patch.setattr(MemoryFileSystem, name, refuse)
        for place in (file, other):
            with pytest.raises(OSError, match="No space left"):
                place.write_bytes(b"after")
    assert root.files() == {"a/file.parquet": 6}
    assert file.read_bytes() == b"before"


def test_an_unfinished_file_does_not_look_like_a_shard(
    root: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    owner = (os, "fsync") if root.is_local else (MemoryFileSystem, "mv")
    real = getattr(*owner)

    def look(*given: object, **options: object) -> object:
        found.extend(root.files())
        return real(*given, **options)

    monkeypatch.setattr(*owner, look)
    (root / "a/part-0.parquet").write_bytes(b"x")
    (name,) = found
    assert name.startswith(f"a/.tmp-{os.getpid()}-")
    assert not name.endswith(".parquet")
    assert root.files() == {"a/part-0.parquet": 1}


@pytest.mark.parametrize("place", ["memory://bucket/set", f"s3://bucket/set{QUERY}"])
def test_a_uri_is_no_path_of_a_disk(place: str) -> None:
    uri = Place.of(place)
    assert not uri.is_local
    for use in (os.fspath, Path, open):
        with pytest.raises(ConfigError, match=r"/set.*: this works on a disk only; give a path"):
            use(uri)


def test_parts_of_the_name_of_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    local, store = Place.of("a") / "b", Place.of(f"s3://bucket/a{QUERY}") / "b"
    assert Path(local) == tmp_path / "a" / "b"
    assert Place.of(tmp_path / "a" / "b") == Place.of(local) == local
    assert str(store) == f"s3://bucket/a/b{QUERY}"
    for place in (local, store):
        assert place.name == "b"
        assert place.parent / "b" == place
        assert (place / "c/d.txt").below(place) == "c/d.txt"
        assert (place / "c").below(place.parent) == "b/c"
        assert pickle.loads(pickle.dumps(place)) == place
        assert {place: 1}[Place(str(place))] == 1
    assert sorted([local / "2", local / "1"]) == [local / "1", local / "2"]


@pytest.mark.parametrize("place", [Path("s3://bucket/set"), "s3:/bucket/set", "gs:/bucket"])
def test_a_uri_that_has_lost_a_slash_is_no_folder(place: Path | str, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="a slash too few"):
        Place.of(place)
    assert list(tmp_path.iterdir()) == []
    assert Place.of("a:b/c").is_local
