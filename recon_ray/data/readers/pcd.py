"""Reader of PCD files (version 0.7): ascii, binary and binary_compressed.

By hand: the library for it needs a compiler to install.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from recon_ray.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

KINDS = {"F": "f", "I": "i", "U": "u"}
MAX_HEADER_LINES = 64


def read_pcd(path: Path) -> dict[str, np.ndarray]:
    """Read the columns of a PCD file.

    Returns:
        Field name to (n,) array; of a field with several numbers a point, the first.

    Raises:
        DataError: If the header is incomplete or the data are shorter than announced.
    """
    content = path.read_bytes()
    header, start = _header(content, path)
    fields = header["FIELDS"]
    counts = [int(c) for c in header.get("COUNT", ["1"] * len(fields))]
    kinds = zip(header["TYPE"], header["SIZE"], strict=True)
    dtypes = [np.dtype(f"<{KINDS[kind]}{size}") for kind, size in kinds]
    names = ("POINTS",) if "POINTS" in header else ("WIDTH", "HEIGHT")
    num = math.prod(int(header[name][0]) for name in names)
    mode = header["DATA"][0].lower()
    if mode == "ascii":
        return _ascii(content[start:], fields, counts, num, path)
    if mode not in ("binary", "binary_compressed"):
        raise DataError(f"{path}: unknown PCD data type {mode}")
    body = content[start:]
    sizes = [num * d.itemsize * c for d, c in zip(dtypes, counts, strict=True)]
    if mode == "binary_compressed":
        packed, size = (int(v) for v in np.frombuffer(body[:8], "<u4"))
        body = _lzf_decompress(body[8 : 8 + packed], size)
    if len(body) < sum(sizes):
        raise DataError(
            f"{path}: the header announces {num} points ({sum(sizes)} bytes), "
            f"but {len(body)} bytes follow"
        )
    if mode == "binary":
        layout = [(f"{i}", d, (c,)) for i, (d, c) in enumerate(zip(dtypes, counts, strict=True))]
        rows = np.frombuffer(body, np.dtype(layout), num)
        return {field: rows[f"{i}"][:, 0] for i, field in enumerate(fields)}
    columns = zip(fields, dtypes, counts, np.cumsum([0, *sizes[:-1]]), strict=True)
    return {f: np.frombuffer(body, d, num * c, start)[::c] for f, d, c, start in columns}


def packed_colors(columns: dict[str, np.ndarray]) -> np.ndarray | None:
    """Unpack the ``rgb`` or ``rgba`` field (bytes blue, green, red) to (n, 3) uint8."""
    packed = columns.get("rgb", columns.get("rgba"))
    if packed is None or packed.dtype.itemsize != 4:
        return None
    return np.ascontiguousarray(packed).view(np.uint8).reshape(-1, 4)[:, 2::-1].copy()


def _header(content: bytes, path: Path) -> tuple[dict[str, list[str]], int]:
    header: dict[str, list[str]] = {}
    start = 0
    for _ in range(MAX_HEADER_LINES):
        end = content.find(b"\n", start)
        if end < 0:
            break
        words = content[start:end].decode("ascii", "replace").split()
        start = end + 1
        if not words or words[0].startswith("#"):
            continue
        header[words[0].upper()] = words[1:]
        if words[0].upper() == "DATA":
            break
    missing = [key for key in ("FIELDS", "SIZE", "TYPE", "DATA") if not header.get(key)]
    if missing:
        raise DataError(f"{path}: the PCD header has no {', '.join(missing)}")
    return header, start


def _ascii(
    body: bytes, fields: list[str], counts: list[int], num: int, path: Path
) -> dict[str, np.ndarray]:
    values = np.array(body.decode("ascii", "replace").split(), dtype=np.float64)
    width = sum(counts)
    if values.size < num * width:
        raise DataError(
            f"{path}: the header announces {num} points, but {values.size // width} follow"
        )
    table = values[: num * width].reshape(num, width)
    starts = np.cumsum([0, *counts[:-1]])
    return {field: table[:, start] for field, start in zip(fields, starts, strict=True)}


def _lzf_decompress(data: bytes, size: int) -> bytes:
    """Undo the LZF packing: literal runs, and copies of up to 264 bytes from up to 8 KiB back."""
    out = bytearray()
    i = 0
    while i < len(data):
        control = data[i]
        i += 1
        if control < 32:
            out += data[i : i + control + 1]
            i += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += data[i]
            i += 1
        reference = len(out) - ((control & 31) << 8) - data[i] - 1
        i += 1
        if reference < 0:
            raise ValueError("the compressed data refer to before their beginning")
        for place in range(reference, reference + length + 2):  # source and copy may overlap
            out.append(out[place])
    if len(out) != size:
        raise ValueError(f"the compressed data give {len(out)} bytes instead of {size}")
    return bytes(out)
