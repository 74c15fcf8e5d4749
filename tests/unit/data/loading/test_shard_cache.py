"""Copies of shards on a node: bounded, fetched once, and evicted under whoever reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recon_ray.data.format.files import file_sha256
from recon_ray.data.format.shards import ShardFile
from recon_ray.data.loading.shard_cache import ShardCache
from recon_ray.errors import DataError


def files(folder: Path, count: int, size: int = 1000) -> list[ShardFile]:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.parquet").write_bytes(bytes([number]) * size)
    return list(map(shard_file, sorted(folder.iterdir())))


def shard_file(path: Path) -> ShardFile:
    return ShardFile(str(path), path.stat().st_size, file_sha256(path))


def held(cache: ShardCache) -> int:
    return sum(path.stat().st_size for path in cache.place.iterdir())


def test_the_least_recently_used_copies_go_first(tmp_path):
    a, b, c = files(tmp_path / "set", 3)
    cache = ShardCache(tmp_path / "cache", 2500)
    copy_a, copy_b = cache.copy_of(a), cache.copy_of(b)
    assert copy_a.read_bytes() == a.read_bytes() != copy_b.read_bytes()
    for name, at in ((copy_a, 1), (copy_b, 2)):
        os.utime(name, (at, at))
    assert cache.copy_of(a) == copy_a  # used again
    assert cache.copy_of(c).exists()
    assert copy_a.exists()
    assert not copy_b.exists()
    assert held(cache) == 2000


def test_a_copy_belongs_to_the_content_and_a_larger_file_is_read_itself(tmp_path):
    (old,) = files(tmp_path / "set", 1)
    cache = ShardCache(tmp_path / "cache", 2500)
    copy = cache.copy_of(old)
    Path(old).write_bytes(b"new")
    assert cache.copy_of(old) == copy
    new = shard_file(Path(old))
    assert cache.copy_of(new).read_bytes() == b"new"
    assert ShardCache(tmp_path / "other", 2).copy_of(new) == new
    Path(old).write_bytes(b"damaged")
    with pytest.raises(DataError, match="is damaged or was changed"):
        ShardCache(tmp_path / "third", 2500).copy_of(new)


def test_what_cannot_be_fetched_or_kept_is_named(tmp_path):
    cache = ShardCache(tmp_path / "cache", 100)
    with pytest.raises(DataError, match=f"{tmp_path}/none: cannot be read"):
        cache.copy_of(ShardFile(str(tmp_path / "none"), 1, "00"))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_folder: .*/file/x cannot be written to"):
        ShardCache(tmp_path / "file" / "x", 100).copy_of(shard_file(tmp_path / "file"))


#: Reads files at random through a small cache, and counts the fetches.
READER = """
import sys, random
from pathlib import Path
from recon_ray.data.format.files import file_sha256
from recon_ray.data.format.shards import ShardFile
from recon_ray.data.loading.shard_cache import ShardCache
folder, cache, limit, seed, rounds = sys.argv[1:]
reads = []
read_bytes = Path.read_bytes
Path.read_bytes = lambda path: reads.append(path) or read_bytes(path)
cache, files = ShardCache(Path(cache), int(limit)), sorted(Path(folder).iterdir())
files = [ShardFile(str(file), 1000, file_sha256(file)) for file in files]
order = random.Random(int(seed))
for _ in range(int(rounds)):
    for file in order.sample(files, len(files)):
        copy = cache.copy_of(file)
        try:
            content = read_bytes(Path(copy))
        except FileNotFoundError:
            content = read_bytes(Path(file))
        assert content == read_bytes(Path(file)), file
print(len(reads))
"""


def run_together(cache: ShardCache, folder: Path, *, rounds: int) -> list[int]:
    """Fetches of each of three processes that read through one cache at once."""
    commands = [
        [sys.executable, "-c", READER, folder, cache.place, cache.limit, seed, rounds]
        for seed in range(3)
    ]
    running = [
        subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    found = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    return list(map(int, found))


def test_processes_fetch_a_shard_once_together_and_may_evict_it_from_each_other(tmp_path):
    files(tmp_path / "set", 20)
    large, small = ShardCache(tmp_path / "large", 10**6), ShardCache(tmp_path / "small", 3000)
    assert sum(run_together(large, tmp_path / "set", rounds=3)) == 20
    assert sum(run_together(small, tmp_path / "set", rounds=20)) > 60
    assert held(small) <= 3000
