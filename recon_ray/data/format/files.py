"""Files of a data set, written whole or not at all, and hashed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from recon_ray.data.format.schema import packed, unpacked, unpacked_field, write_options
from recon_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

TEMPORARY = ".tmp-"
AGAIN = "prepare it again"
REBUILD = "delete it and repeat the job that made it, which rebuilds it"


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: it is either whole or absent.

    Raises:
        DataError: If the disk is full or the folder cannot be written to.
    """
    # Not named *.parquet: the leftover of a killed process must not look like a shard.
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C too
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); free space there or choose "
            "another output, then run again: finished shards are kept"
        ) from error


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, whole or not at all; see :func:`write_file`."""
    write_file(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:  # noqa: ANN401 - what JSON holds is checked where it is used
    """Read JSON; None if the file is missing or damaged and has to be made again."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_table(root: Path, file: str, table: pa.Table) -> dict[str, Any]:
    """Write a table as Parquet, whole or not at all; equal rows give equal bytes.

    Returns:
        Its entry in a manifest: ``file`` (the path below the set), ``bytes`` and ``sha256``.
    """
    content = parquet_bytes(table)
    write_file(root / file, content)
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


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify_hash(root: Path, entry: Mapping[str, Any]) -> Path:
    """Compare a file with its entry in a manifest, see :func:`write_table`, and return its path.

    Raises:
        DataError: If it is missing or has another SHA-256; the message names it.
    """
    path = root / entry["file"]
    try:
        found = file_sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {REBUILD}") from error
    if found != entry["sha256"]:
        raise DataError(
            f"{path}: is damaged or was changed (its SHA-256 is not the manifest's); {REBUILD}"
        )
    return path


def check_rows(path: Path, rows: int) -> None:
    """Compare the footer of a Parquet file with the number of rows that it should hold.

    Raises:
        DataError: If it is missing, unreadable or holds another number.
    """
    if not path.is_file():
        raise DataError(f"{path}: the shard is missing; run the prepare job again to rebuild it")
    try:
        found = pq.read_metadata(path).num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: is not a readable Parquet file; {AGAIN}") from error
    if found != rows:
        raise DataError(f"{path}: holds {found} rows, but the manifest has {rows}; {AGAIN}")


def read_table(path: Path, columns: list[str] | None) -> pa.Table:
    """Read some or (None) all columns of a Parquet file.

    Raises:
        DataError: If it is unreadable or lacks a column.
    """
    with _opened(path, columns or ()) as file:
        return unpacked(file.read(columns))


def read_parts(
    path: Path, columns: Sequence[str], rows: int, *, first: int = 0
) -> Iterator[pa.Table]:
    """Read a Parquet file in parts of ``rows`` rows, in this thread.

    Args:
        path: The file.
        columns: Names of the columns.
        rows: Rows of a part.
        first: Number of the part to begin with; row groups before it are not decoded.

    Raises:
        DataError: If it is unreadable or lacks a column.
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


def read_schema(path: Path, columns: Sequence[str]) -> pa.Schema:
    """Read the fields of some columns of a Parquet file.

    Raises:
        DataError: If it is unreadable or lacks a column.
    """
    with _opened(path, columns) as file:
        return pa.schema([unpacked_field(file.schema_arrow.field(name)) for name in columns])


@contextlib.contextmanager
def _opened(path: Path, columns: Sequence[str]) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise DataError(f"{path}: has no column {missing[0]!r}")
            yield file
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet; {REBUILD}") from error


def remove_temporaries(root: Path, folders: Iterable[str]) -> None:
    """Delete the unfinished files of ended processes in a set and, at any depth, in its folders."""
    inside = (path for name in folders for path in (root / name).rglob(f"{TEMPORARY}*"))
    for path in (*root.glob(f"{TEMPORARY}*"), *inside):
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
