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
    form = np.lib.format
    with _opened(path) as stream:
        try:
            is_first = form.read_magic(stream) == (1, 0)
            read = form.read_array_header_1_0 if is_first else form.read_array_header_2_0
            if not read(stream)[2].hasobject:
                return np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            reason = _first_line(error)
            raise DataError(
                f"{path}: cannot be read as an array that NumPy wrote ({reason})"
            ) from error
        value = _unpickle(stream, path)  # at the content, behind the header
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


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


#: Functions that NumPy's own pickles name, taken from there, so that no private name is used.
NUMPY_BUILDERS: dict[tuple[str, str], Any] = {
    ("multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
    ("multiarray", "scalar"): np.float64(0).__reduce__()[0],
    ("numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0],
}
