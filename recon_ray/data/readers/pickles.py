"""Restricted reader of pickles: arrays and plain values only.

A pickle is a program that may import and call anything. Published data sets use it for lists of
arrays only, so this reader builds those and rejects every other name, as in the section
"Restricting Globals" of Python's documentation.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from recon_ray.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

CORE_MODULES = ("numpy.core", "numpy._core")  # the second is NumPy 2's name of the first
PLAIN = {
    kind.__name__: kind
    for kind in (dict, list, tuple, str, int, float, bool, bytes, bytearray, set, frozenset)
}


class RefusedPickleError(DataError):
    """Error for a pickle that names more than arrays and plain values."""


def load_pickle(path: Path) -> Any:  # noqa: ANN401 - the caller checks the structure
    """Read a pickle of arrays, dicts, lists, tuples, strings and numbers.

    Raises:
        DataError: If the file is missing, damaged, or names anything else; the message has the name
            that was rejected.
    """
    with _opened(path) as stream:  # not read at once: the largest have two gigabytes
        return _unpickle(stream, path)


def load_object_array(path: Path) -> Any:  # noqa: ANN401 - the caller checks the structure
    """Read a ``.npy`` file, also one of Python values, which NumPy keeps as a pickle.

    Returns:
        The array, or the single value in it (``np.save`` of a dict).

    Raises:
        DataError: See :func:`load_pickle`.
    """
    with _opened(path) as stream:
        if not _header(stream, path).hasobject:
            try:
                return np.load(path, allow_pickle=False)
            except (ValueError, OSError, EOFError) as error:
                raise _no_array(path, error) from error
        value = _unpickle(stream, path)
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _header(stream: BinaryIO, path: Path) -> np.dtype:
    """Read the header of a ``.npy`` file; leaves the stream at the content."""
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        return read(stream)[2]
    except (ValueError, OSError, EOFError) as error:
        raise _no_array(path, error) from error


def _no_array(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read as an array that NumPy wrote ({_first_line(error)})")


def _opened(path: Path) -> BinaryIO:
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty")
        return path.open("rb")
    except OSError as error:
        reason = "file not found" if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(f"{path}: {reason}") from error


def _unpickle(stream: BinaryIO, path: Path) -> Any:  # noqa: ANN401 - whatever it holds
    try:
        return _ArrayUnpickler(stream).load()
    except RefusedPickleError as error:
        raise DataError(
            f"{path}: asks for {error} when it is unpickled; only arrays and plain values are "
            "read, because a pickle can run any program"
        ) from error
    except Exception as error:  # damaged pickles fail in many ways
        raise DataError(f"{path}: is not a readable pickle ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _encode(text: str, encoding: str = "") -> bytes:
    """Return the bytes that protocol 2 wrote as text; other codecs are rejected."""
    if encoding != "latin1":
        raise RefusedPickleError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of arrays and plain values."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - types and functions
        if module in ("builtins", "__builtin__") and name in PLAIN:
            return PLAIN[name]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        package, _, submodule = module.rpartition(".")
        if package in CORE_MODULES and (submodule, name) in NUMPY_BUILDERS:
            return NUMPY_BUILDERS[submodule, name]
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise RefusedPickleError(f"{module}.{name}")

    def persistent_load(self, pid: object) -> Any:  # noqa: ANN401 - the base class's type
        raise RefusedPickleError(f"the outside object {pid!r}")


def _numpy_builders() -> dict[tuple[str, str], Any]:
    """Take the functions from what NumPy's own pickles name, so that no private name is used."""
    array, scalar = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    from_buffer = np.zeros(1).__reduce_ex__(5)[0]
    return {
        ("multiarray", "_reconstruct"): array,
        ("multiarray", "scalar"): scalar,
        ("numeric", "_frombuffer"): from_buffer,
    }


NUMPY_BUILDERS = _numpy_builders()
