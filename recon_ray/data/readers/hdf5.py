"""Point clouds in HDF5: ``data`` (n, N, 3), ``label`` (n,), perhaps ``normal`` (n, N, 3)."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recon_ray.data.readers.file_cache import RecentFiles
from recon_ray.data.readers.meshes import Shape, check_shape
from recon_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import h5py


@dataclass(frozen=True)
class CloudFile:
    """Labels and size of the clouds in a file, without their points.

    Attributes:
        labels: (n,) int64.
        num_points: Points of each cloud.
    """

    labels: np.ndarray
    num_points: int


def read_labels(path: Path) -> CloudFile:
    """Read the labels of an HDF5 file and check the shapes of its arrays.

    Raises:
        DataError: If the file is missing, cut off or no HDF5 file, or its arrays do not fit.
    """
    with _opened(path) as file:
        missing = [name for name in ("data", "label") if name not in file]
        if missing:
            found = ", ".join(file) or "none"
            raise DataError(f"{path}: has no array {missing[0]!r}, only {found}")
        shape, kind = file["data"].shape, file["data"].dtype
        labels = np.asarray(file["label"][()])
    if len(shape) != 3 or shape[2] < 3 or kind.kind not in "fiu":
        raise DataError(f"{path}: data is {kind} {shape}; expected numbers of shape (n, N, 3)")
    if labels.size != shape[0]:
        raise DataError(f"{path}: holds {shape[0]} clouds but {labels.size} labels")
    if labels.dtype.kind not in "fiu" or (labels != np.round(labels)).any():
        raise DataError(f"{path}: its labels are {labels.dtype}; expected whole numbers")
    return CloudFile(labels.reshape(-1).astype(np.int64), int(shape[1]))


def read_cloud(path: Path, row: int) -> Shape:
    """Read the cloud of a row (from 0) of an HDF5 file; the last files stay in memory.

    Raises:
        DataError: If the file cannot be read or the cloud holds no usable points.
    """
    points, normals = _RECENT.get(path)
    if row >= len(points):
        raise DataError(f"{path}#{row}: the file holds {len(points)} clouds only")
    cloud = points[row].astype(np.float64)
    normal = None if normals is None else normals[row].astype(np.float64)
    shape = Shape(cloud[:, :3], normals=normal)
    check_shape(shape, f"{path}#{row}")
    return shape


def _read(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with _opened(path) as file:
        points = file["data"][()]
        normals = file["normal"][()] if "normal" in file else None
    fits = normals is not None and normals.shape == (*points.shape[:2], 3)
    return points, normals if fits else None


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    import h5py  # only these data sets need it

    if not path.is_file():
        raise DataError(f"{path}: file not found")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0][:160]
        raise DataError(
            f"{path}: is damaged or cut off, or not an HDF5 file ({reason}); fetch it again"
        ) from error


_RECENT = RecentFiles(_read)
