"""Archives of data sets, unpacked once beside the prepared set."""

from __future__ import annotations

import io
import logging
import os
import shutil
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from recon_ray.data.format.files import read_json, write_json
from recon_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

logger = logging.getLogger(__name__)

MARKER = "_unpacked.json"  # written last
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_GROWTH = 200  # unpacked bytes for one packed: beyond it the archive is not a data set


def is_archive(path: Path) -> bool:
    """Return whether a path is an archive that :func:`unpack` reads."""
    return path.is_file() and path.name.lower().endswith((".zip", *TAR_SUFFIXES))


def unpack(archive: Path, target: Path) -> Path:
    """Unpack a ``.zip``, ``.tar`` or packed ``.tar`` file into a folder, and return the folder.

    A complete folder of the same archive is used as it is; an incomplete one is made again.

    Raises:
        DataError: If the archive is damaged, a member would lie outside the folder or is not a
            plain file, or the folder holds something else.
    """
    found = archive.stat()
    identity = {"archive": archive.name, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
    if read_json(target / MARKER) == identity:
        logger.info("%s: already unpacked in %s", archive, target)
        return target
    # Leftovers of an interrupted job or of another archive go, but no folder of others.
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if target.exists():
        if read_json(target / MARKER) is None:
            raise DataError(
                f"{target}: is not of this package, {archive} is not unpacked into it; move it away"
            )
        shutil.rmtree(target)
    logger.info("unpacking %s to %s", archive, target)
    partial.mkdir(parents=True)
    try:
        _unpack(archive, partial)
        write_json(partial / MARKER, identity)
        partial.rename(target)
    except BaseException:  # Ctrl-C too: half an archive is of no use, and may fill the disk
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _unpack(archive: Path, target: Path) -> None:
    unpacked, changed = 0, archive.stat().st_mtime_ns
    try:
        for name, size, source in _members(archive):
            unpacked += size
            _check_size(archive, unpacked)
            place = _place(archive, target, name)
            with place.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            # The time of the archive: unpacked again, its files have not changed.
            os.utime(place, ns=(changed, changed))
    except DataError:
        raise
    except Exception as error:  # decompressors fail on damaged bytes in many ways
        if isinstance(error, OSError) and error.errno is not None:  # theirs have no number
            raise DataError(
                f"{error.filename or target}: cannot be read or written while {archive} is "
                f"unpacked ({error.strerror}); make room or give access there, or choose another "
                "output"
            ) from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise DataError(
            f"{archive}: cannot be unpacked ({reason}); fetch it again, or unpack it yourself and "
            "give the folder"
        ) from error


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield the name, the size and the open content of every file in an archive."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as zipped:
            _check_size(archive, sum(member.file_size for member in zipped.infolist()))
            for info in zipped.infolist():
                if not info.is_dir():
                    with zipped.open(info) as source:
                        yield info.filename, info.file_size, source
        return
    with tarfile.open(archive) as tarred:
        for member in (member for member in tarred if not member.isdir()):
            if not member.isfile():
                raise DataError(
                    f"{archive}: its member {member.name} is a link or a device, which no data set "
                    "needs; unpack it yourself and give the folder"
                )
            yield member.name, member.size, tarred.extractfile(member)  # type: ignore[misc]  # a file
        _check_end(tarred)


def _check_end(packed: tarfile.TarFile) -> None:
    """Check that the archive ends after its last member.

    Python takes a damaged header for the end of the archive, and compares the checksum of a
    compressed stream when its last byte is read.

    Raises:
        TarError: If the archive goes on.
    """
    stream: IO[bytes] = packed.fileobj  # type: ignore[assignment]  # it is open
    if isinstance(stream, io.BufferedReader):  # not compressed, so that to seek costs nothing
        stream.seek(packed.offset)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged header at byte {packed.offset}")
    else:
        while stream.read(1 << 20):
            pass


def _check_size(archive: Path, unpacked: int) -> None:
    packed = archive.stat().st_size
    if unpacked > MAX_GROWTH * max(packed, 1 << 20):
        raise DataError(
            f"{archive}: would grow from {packed} to {unpacked} bytes, which no data set does; "
            "unpack it yourself if it is sound"
        )


def _place(archive: Path, target: Path, name: str) -> Path:
    """Return the path of a member below the folder, and make its parents.

    Raises:
        DataError: If it would lie outside the folder.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0]:
        raise DataError(f"{archive}: its member {name!r} would be written outside the folder")
    place = target.joinpath(*parts)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place
