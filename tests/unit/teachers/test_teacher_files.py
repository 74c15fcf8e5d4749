from __future__ import annotations

import pickle

import pytest
import torch

from recon_ray.errors import TeacherError
from recon_ray.teachers.create import create_image_teacher
from recon_ray.teachers.specification import parse_specification
from recon_ray.teachers.weights_file import read_weights, state_dict_sha256


def test_specifications_come_apart_at_the_first_two_colons():
    found = parse_specification("open_clip:ViT-B-32:openai:dir/x:y.pt")
    assert (found.family, found.arch, found.source) == (
        "open_clip", "ViT-B-32", "openai:dir/x:y.pt",
    )  # fmt: skip
    assert found.name == "open_clip:ViT-B-32"


@pytest.mark.parametrize("text", ["clip:ViT-B-32", "", "vit_base", "open_clip", "timm:"])
def test_unknown_specifications_are_refused(text):
    with pytest.raises(TeacherError, match=repr(text)):
        create_image_teacher(text)


def test_state_dict_hash_does_not_depend_on_order_or_layout():
    a, b = torch.arange(6.0).reshape(2, 3), torch.ones(2, dtype=torch.bfloat16)
    first = state_dict_sha256({"a": a, "b": b})
    assert first == state_dict_sha256({"b": b, "a": a.T.contiguous().T})
    assert first != state_dict_sha256({"a": a + 1, "b": b})
    assert first != state_dict_sha256({"a": a.reshape(3, 2), "b": b})
    assert first != state_dict_sha256({"c": a, "b": b})
    assert first != state_dict_sha256({"a": a, "b": b.float()})


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("content", ["garbage", "pickle", "list", "truncated"])
def test_unreadable_files_are_refused_and_never_executed(tmp_path, capsys, content):
    path = tmp_path / "w.pt"
    if content == "garbage":
        path.write_bytes(b"not a checkpoint")
    elif content == "pickle":
        path.write_bytes(pickle.dumps({"a": Payload()}))
    elif content == "list":
        torch.save([torch.zeros(1)], path)
    else:
        torch.save({"a": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(TeacherError, match=r"w\.pt"):
        read_weights(path)
    assert capsys.readouterr().out == ""


def test_a_broken_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"\x00" * 20)
    with pytest.raises(TeacherError, match=r"w\.safetensors cannot be read"):
        read_weights(path)


def test_half_precision_weights_become_float32(tmp_path):
    state = {"a": torch.ones(2).half(), "n": torch.tensor(3)}
    torch.save({"model": state}, tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt").state
    assert found["a"].dtype == torch.float32
    assert found["n"].dtype == torch.int64
