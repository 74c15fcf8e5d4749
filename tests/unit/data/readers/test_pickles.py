"""Pickles are read without running anything in them."""

from __future__ import annotations

import os
import pickle
import subprocess
from functools import partial

import numpy as np
import pytest

from recon_ray.data.readers.pickles import load_object_array, load_pickle
from recon_ray.errors import DataError


class _Calls:
    """Unpickles to the result of a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


VALUES = {
    "arrays": [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7], np.int32)],
    "scalars": (np.float32(1.5), np.int64(3), 1, 2.5, True, None, "text", b"bytes"),
    "sets": {frozenset({1}), frozenset()},
    "objects": np.array([{"a": 1}, [2]], dtype=object),
    "fortran": np.asfortranarray(np.ones((3, 2))),
}


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_and_plain_values_come_back(tmp_path, protocol):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(VALUES, protocol=protocol))
    found = load_pickle(path)
    np.testing.assert_array_equal(found["arrays"][0], VALUES["arrays"][0])
    assert found["arrays"][0].dtype == np.float32
    np.testing.assert_array_equal(found["fortran"], np.ones((3, 2)))
    assert found["scalars"] == VALUES["scalars"]
    assert found["sets"] == VALUES["sets"]
    assert found["objects"].tolist() == [{"a": 1}, [2]]


def test_both_names_of_numpy_core_are_known_and_no_other_codecs(tmp_path):
    content = pickle.dumps(np.arange(3), protocol=2)
    path = tmp_path / "a.pkl"
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        written = content.replace(b"numpy._core.multiarray", module).replace(
            b"numpy.core.multiarray", module
        )
        path.write_bytes(written)
        np.testing.assert_array_equal(load_pickle(path), np.arange(3))
    path = tmp_path / "bad.pkl"
    path.write_bytes(b"c_codecs\nencode\n(X\x01\x00\x00\x00xX\x03\x00\x00\x00ziptR.")
    with pytest.raises(DataError, match=r"asks for _codecs\.encode to 'zip'"):
        load_pickle(path)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (_Calls(os.system, "touch {marker}"), "posix.system"),
        (_Calls(subprocess.Popen, ["touch", "{marker}"]), "subprocess.Popen"),
        (_Calls(eval, "1"), "builtins.eval"),
        (_Calls(getattr, "", "join"), "builtins.getattr"),
        (_Calls(np.load, "x"), r"numpy\.load"),
        (partial(int, "3"), "functools.partial"),
        (np.random.default_rng(0), r"numpy\.random"),
        (_Calls("x".encode, "zip"), "builtins.getattr"),
    ],
)
def test_everything_else_is_refused_by_name(tmp_path, content, name):
    path, marker = tmp_path / "bad.pkl", tmp_path / "marker"
    path.write_bytes(pickle.dumps([content]).replace(b"{marker}", str(marker).encode()))
    with pytest.raises(DataError, match=rf"bad\.pkl: asks for {name}.* only arrays and plain"):
        load_pickle(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"no pickle", "is not a readable pickle"),
        (pickle.dumps(VALUES)[:-40], "is not a readable pickle"),
        (b"Pouter\n.", "asks for the outside object 'outer'"),
    ],
)
def test_damaged_pickles_are_named(tmp_path, content, message):
    path = tmp_path / "bad.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.pkl: {message}"):
        load_pickle(path)
    with pytest.raises(DataError, match="gone: file not found"):
        load_pickle(tmp_path / "gone")


def test_numpy_files_of_values_and_of_numbers(tmp_path):
    np.save(tmp_path / "dict.npy", {"xyz": np.ones((2, 3))}, allow_pickle=True)
    np.testing.assert_array_equal(load_object_array(tmp_path / "dict.npy")["xyz"], np.ones((2, 3)))
    np.save(tmp_path / "plain.npy", np.arange(4))
    np.testing.assert_array_equal(load_object_array(tmp_path / "plain.npy"), np.arange(4))
    np.save(tmp_path / "bad.npy", np.array(_Calls(os.getpid), dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"bad\.npy: asks for posix\.getpid"):
        load_object_array(tmp_path / "bad.npy")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "plain.npy").read_bytes()[:-8])
    with pytest.raises(DataError, match=r"cut\.npy: cannot be read as an array that NumPy wrote"):
        load_object_array(tmp_path / "cut.npy")
    (tmp_path / "text.npy").write_text("hello world")
    with pytest.raises(DataError, match=r"text\.npy: cannot be read as an array"):
        load_object_array(tmp_path / "text.npy")
