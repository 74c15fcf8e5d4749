"""Files of a data set, written whole or not at all, and hashed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from recon_ray.data.format.schema import packed, unpacked, unpacked_field, write_options
from recon_ray.data.format.shards import ShardFile
from recon_ray.errors import DataError
from recon_ray.storage import TEMPORARY, Place, reason_of, unreachable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

AGAIN = "prepare it again"
REBUILD = "delete it and repeat the job that made it, which rebuilds it"
#: Columns of a few bytes, which are read alone from an object store; for others the file is read
#: whole, by one request.
SMALL_COLUMNS = {"sample_id", "object_id", "label", "category", "caption", "valid_points"}

Where: TypeAlias = "Place | str | os.PathLike[str]"


def write_file(path: Where, content: bytes | memoryview) -> None:
    """Write a file atomically: it is either whole or absent.

    Raises:
        DataError: If the disk is full, or the folder or the store cannot be written to.
    """
    place = Place.of(path)
    try:
        place.write_bytes(content)
    except OSError as error:
        raise DataError(
            f"{place}: cannot be written ({reason_of(error)}); free space there or choose "
            "another output, then run again: finished shards are kept"
        ) from error


def write_json(path: Where, value: object) -> None:
    """Write a value as JSON, whole or not at all; see :func:`write_file`."""
    write_file(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Where) -> Any:  # noqa: ANN401 - what JSON holds is checked where it is used
    """Read JSON; None if the file is missing or damaged and has to be made again.

    Raises:
        ConfigError: If an object store does not answer.
    """
    place = Place.of(path)
    try:
        return json.loads(place.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        if place.is_local:
            return None
        raise unreachable(place, error) from error


def write_table(root: Where, file: str, table: pa.Table) -> dict[str, Any]:
    """Write a table as Parquet, whole or not at all; equal rows give equal bytes.

    Returns:
        Its entry in a manifest: ``file`` (the path below the set), ``bytes`` and ``sha256``.
    """
    content = parquet_bytes(table)
    write_file(Place.of(root) / file, content)
    return {"file": file, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def parquet_bytes(table: pa.Table) -> memoryview:
    """Return the Parquet file that holds a table; see :mod:`recon_ray.data.format.schema`."""
    sink = pa.BufferOutputStream()
    stored = packed(table)
    pq.write_table(stored, sink, **write_options(stored.schema))
    return memoryview(sink.getvalue())


def is_hidden(name: str) -> bool:
    """Return whether a name is a dot file, or the folder that macOS packs beside files."""
    return name.startswith(".") or name == "__MACOSX"


def is_text(name: str) -> bool:
    """Return whether UTF-8 can hold a name: other encodings are lone surrogates in Python."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def visible(folder: Path, pattern: str) -> list[Path]:
    """Return the matches of a pattern in a folder, sorted, without those of :func:`is_hidden`."""
    return sorted(
        path
        for path in folder.glob(pattern)
        if not any(map(is_hidden, path.relative_to(folder).parts))
    )


def file_sha256(path: Where) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with Place.of(path).open() as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify_hash(root: Where, entry: Mapping[str, Any]) -> Place:
    """Compare a file with its entry in a manifest, see :func:`write_table`, and return its place.

    Raises:
        DataError: If it is missing or has another SHA-256; the message names it.
    """
    place = Place.of(root) / entry["file"]
    check_sha256(place, entry["sha256"])
    return place


def check_sha256(path: Where, expected: str) -> None:
    """Compare a file with its SHA-256.

    Raises:
        DataError: If it is missing or has another one; the message names it.
    """
    try:
        found = file_sha256(path)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({reason_of(error)}); {REBUILD}") from error
    if found != expected:
        raise damaged(path)


def _missing(path: Where) -> DataError:
    return DataError(f"{path}: the shard is missing; run the prepare job again to rebuild it")


def damaged(path: Where) -> DataError:
    """Return the error of a file whose SHA-256 is another one than in the manifest."""
    return DataError(
        f"{path}: is damaged or was changed (its SHA-256 is not the manifest's); {REBUILD}"
    )


def check_rows(path: Where, rows: int) -> None:
    """Compare the footer of a Parquet file with the number of rows that it should hold.

    Raises:
        DataError: If it is missing, unreadable or holds another number.
    """
    with _opened(path, ("sample_id",), checks=False) as file:
        found = file.metadata.num_rows
    if found != rows:
        raise DataError(f"{path}: holds {found} rows, but the manifest has {rows}; {AGAIN}")


def read_table(path: Where, columns: list[str] | None, *, sha256: str | None = None) -> pa.Table:
    """Read some or (None) all columns of a Parquet file.

    Args:
        path: The file.
        columns: Names of the columns.
        sha256: SHA-256 that it has to have; None to read without a comparison.

    Raises:
        DataError: If it is unreadable, damaged or lacks a column.
    """
    with _opened(path, columns, sha256=sha256) as file:
        return unpacked(file.read(columns))


def read_parts(
    path: Where, columns: Sequence[str], rows: int, *, first: int = 0
) -> Iterator[pa.Table]:
    """Read a Parquet file in parts of ``rows`` rows, in this thread.

    Args:
        path: The file.
        columns: Names of the columns.
        rows: Rows of a part.
        first: Number of the part to begin with; row groups before it are not decoded.

    Raises:
        DataError: If it is unreadable, damaged or lacks a column.
    """
    with _opened(path, columns) as file:
        groups, skipped = _groups_from(file.metadata, first * rows), first
        if groups:
            skipped = 0
        options = {"columns": list(columns), "use_threads": False, "row_groups": groups or None}
        for part in itertools.islice(file.iter_batches(rows, **options), skipped, None):
            yield unpacked(pa.Table.from_batches([part]))


def _groups_from(metadata: pq.FileMetaData, row: int) -> list[int]:
    """Return the row groups from a row on, none if no row group begins there."""
    before = 0
    for group in range(metadata.num_row_groups):
        if before >= row:
            return list(range(group, metadata.num_row_groups)) if before == row else []
        before += metadata.row_group(group).num_rows
    return []


def read_schema(path: Where, columns: Sequence[str]) -> pa.Schema:
    """Read the fields of some columns of a Parquet file.

    Raises:
        DataError: If it is unreadable or lacks a column.
    """
    with _opened(path, columns) as file:
        return pa.schema([unpacked_field(file.schema_arrow.field(name)) for name in columns])


@contextlib.contextmanager
def _opened(
    path: Where,
    columns: Sequence[str] | None,
    *,
    sha256: str | None = None,
    checks: bool = True,
) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; a store is asked for all of it at once, or for the parts together.

    The hash of a file with ``check`` is compared, unless only small columns of it are read.
    """
    place = Place.of(path)
    is_small = columns is not None and SMALL_COLUMNS.issuperset(columns)
    if isinstance(place, ShardFile) and place.check and not is_small:
        sha256 = place.sha256
    try:
        source: Any = str(place)
        if sha256 is not None or not (place.is_local or is_small):
            content = place.read_bytes()
            if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
                raise damaged(place)
            source = pa.BufferReader(content)
        elif not place.is_local:
            source = place.open()
        with pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=True) as file:
            missing = [n for n in columns or () if n not in file.schema_arrow.names]
            if missing and checks:
                raise DataError(f"{place}: has no column {missing[0]!r}")
            yield file
    except FileNotFoundError as error:
        raise _missing(place) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{place}: cannot be read as Parquet; {REBUILD}") from error


def remove_temporaries(root: Where, folders: Iterable[str]) -> None:
    """Delete the unfinished files of ended processes in a set and, at any depth, in its folders.

    An object store has none.
    """
    place = Place.of(root)
    if not place.is_local:
        return
    folder = Path(place)
    inside = (path for name in folders for path in (folder / name).rglob(f"{TEMPORARY}*"))
    for path in (*folder.glob(f"{TEMPORARY}*"), *inside):
        owner = path.name.removeprefix(TEMPORARY).split("-")[0]
        if not (owner.isdigit() and _alive(int(owner))):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False  # an earlier process of this number: this one has not begun to write
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's
    return True
