"""Archives of data sets: unpacked once, and only inside their folder."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import tarfile
import zipfile

import pytest

from recon_ray.data.readers.archives import is_archive, unpack
from recon_ray.errors import DataError

FILES = {"set/a.txt": b"one", "set/deep/b.txt": b"two"}
ZEROS = {"zeros": bytes(3 << 20)}


def _tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


def _zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def _tree(folder):
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "_unpacked.json")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize("name", ["s.zip", "s.tar", "s.tar.gz", "s.tgz"])
def test_archives_are_unpacked_once(tmp_path, name):
    mode = "w" if name.endswith(".tar") else "w:gz"
    path = tmp_path / name
    _zip(path, FILES) if name.endswith("zip") else _tar(path, FILES, mode)
    assert is_archive(path)
    target = unpack(path, tmp_path / "out" / "source")
    assert _tree(target) == FILES
    (target / "set" / "a.txt").write_bytes(b"kept")
    assert _tree(unpack(path, target))["set/a.txt"] == b"kept"
    # Another archive of the same name and size is another one; its files have its time.
    changed = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(changed, changed))
    assert _tree(unpack(path, target)) == FILES
    assert {(target / name).stat().st_mtime_ns for name in FILES} == {changed}


def test_an_interrupted_or_another_unpacking_is_made_again(tmp_path):
    target, partial = tmp_path / "source", tmp_path / "source.partial"
    partial.mkdir()
    (partial / "half").touch()
    unpack(_zip(tmp_path / "s.zip", FILES), target)
    assert _tree(target) == FILES
    assert not partial.exists()
    other = {"other.txt": b"something longer"}
    assert _tree(unpack(_zip(tmp_path / "t.zip", other), target)) == other


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "C:\\x", "..\\x"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_outside_the_folder_are_refused(tmp_path, kind, name):
    write = _zip if kind == "zip" else _tar
    inside = tmp_path / "in"
    inside.mkdir()
    path = write(inside / f"s.{kind}", {name: b"bad"})
    with pytest.raises(DataError, match="would be written outside the folder"):
        unpack(path, inside / "source")
    assert not (inside / "source").exists()
    assert not (tmp_path / "x").exists()


def test_links_are_refused_and_a_folder_of_the_users_own_is_not_touched(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as packed:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        packed.addfile(member)
    with pytest.raises(DataError, match="its member link is a link or a device"):
        unpack(tmp_path / "s.tar", tmp_path / "source")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "mine").touch()
    with pytest.raises(DataError, match=r"source: is not of this package, .*s\.zip is not unpacke"):
        unpack(_zip(tmp_path / "s.zip", FILES), tmp_path / "source")
    assert (tmp_path / "source" / "mine").exists()


def test_damaged_archives_and_bombs_are_refused(tmp_path, monkeypatch):
    path = _tar(tmp_path / "s.tar.gz", {"a": bytes(range(256)) * 999})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"s\.tar\.gz: cannot be unpacked"):
        unpack(path, tmp_path / "source")
    (tmp_path / "t.zip").write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match=r"t\.zip: cannot be unpacked \(BadZipFile"):
        unpack(tmp_path / "t.zip", tmp_path / "source")
    monkeypatch.setattr("recon_ray.data.readers.archives.MAX_GROWTH", 2)
    for bomb in (_zip(tmp_path / "b.zip", ZEROS), _tar(tmp_path / "b.tgz", ZEROS)):
        with pytest.raises(DataError, match=rf"{bomb.name}: would grow from \d+ to 3145728 bytes"):
            unpack(bomb, tmp_path / "source")
    assert not list(tmp_path.glob("source*"))


@pytest.mark.parametrize("name", ["s.zip", "s.tar.gz", "s.tar.bz2", "s.tar.xz", "s.tar"])
def test_a_flipped_byte_anywhere_is_refused_or_harmless(tmp_path, name):
    random.seed(0)
    files = {f"set/{i}.txt": random.randbytes(600) + b"the same again " * 60 for i in range(4)}
    path = tmp_path / name
    if name == "s.zip":
        _zip(path, files)
    else:
        _tar(path, files, f"w:{name[6:]}")
    sound = path.read_bytes()
    # A plain tar has a checksum of its headers only: that of the third member, without its dates.
    third = 2 * 2048
    places = range(third, third + 100, 7) if name == "s.tar" else range(2, len(sound), 61)
    refusals = []
    for place in places:
        damaged = bytearray(sound)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            target = unpack(path, tmp_path / "source")
        except DataError as error:
            refusals.append((str(error), list(tmp_path.glob("source*"))))
        else:
            assert _tree(target) == files
            shutil.rmtree(target)
    assert all(name in message and "\n" not in message for message, _ in refusals)
    assert not any(left for _, left in refusals)
    assert len(refusals) > len(places) // 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_an_unpacking_that_ends_early_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    path = _zip(tmp_path / "s.zip", FILES)
    monkeypatch.setattr("recon_ray.data.readers.archives.shutil.copyfileobj", fail)
    with pytest.raises((DataError, KeyboardInterrupt)) as caught:
        unpack(path, tmp_path / "source")
    assert not list(tmp_path.glob("source*"))
    if isinstance(error, OSError):
        assert "(No space left); make room or give access there" in str(caught.value)
