from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from weights_samples import SIZES, TINY, make_model, make_weights, pointmae, published

from recon_ray.errors import CheckpointError
from recon_ray.weights.adapters import to_reference
from recon_ray.weights.weight_files import (
    LoadedWeights,
    from_own,
    read_checkpoint,
    read_file,
    save_reference,
    save_weights,
    strip_reference,
)


def same(a: LoadedWeights, b: LoadedWeights) -> bool:
    return a.state.keys() == b.state.keys() and all(
        torch.equal(a.state[key], b.state[key]) for key in a.state
    )


def write(weights: LoadedWeights, path: Path) -> Path:
    save_weights(path, weights.state, kind=weights.kind, architecture=weights.architecture)
    return path


@pytest.mark.parametrize("kind", TINY)
def test_safetensors_hold_kind_and_architecture_and_every_bit(kind: str, tmp_path: Path) -> None:
    weights = make_weights(kind)
    found = read_file(write(weights, tmp_path / "w.safetensors"))
    assert found.kind == kind
    assert found.architecture == json.loads(json.dumps(weights.architecture))
    assert same(found, weights)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("kind", TINY)
def test_export_and_import_of_the_references_layout_are_exact(kind: str, tmp_path: Path) -> None:
    weights = make_weights(kind)
    save_reference(tmp_path / "w.pth", weights)
    found = read_file(tmp_path / "w.pth")
    assert found.kind == kind
    assert same(found, weights)
    assert not found.unknown
    top = torch.load(tmp_path / "w.pth", weights_only=True)
    assert list(top) == ["model_state_dict" if kind == "partseg" else "base_model", "recon_ray"]
    assert json.dumps(found.architecture, sort_keys=True) == json.dumps(
        weights.architecture, sort_keys=True
    )


@pytest.mark.parametrize("kind", TINY)
def test_sizes_are_read_off_the_shapes(kind: str) -> None:
    arguments = {"embed_dim": 128, "num_heads": 2, "depth": 3}
    if kind == "partseg":
        arguments["feature_blocks"] = (0, 2)
    given = make_weights(kind, **arguments).architecture
    found = read_checkpoint(published(kind, **arguments), source="file").architecture
    told = found.keys() - {"fps_min_sq_norm", "drop_first_patches"}
    assert {name: given[name] for name in told} == {name: found[name] for name in told}
    assert {"embed_dim", "depth", "patch_widths"} <= told
    assert found["fps_min_sq_norm"] == 1e-3
    untold = {"num_heads", "num_groups", "feature_blocks"}
    assert not untold & told
    assert ("group_size" in told) == ("decoder_depth" in told)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "module.base_model.", "base_model.module.", "module.module."]
)
def test_prefixes_of_wrappers_are_removed(prefix: str) -> None:
    found = read_checkpoint(published("classifier", prefix), source="file")
    assert found.kind == "classifier"
    assert same(found, make_weights("classifier"))
    assert found.dropped == ("img_encoder.model.weight",)
    assert found.extra == {"epoch": 300}
    assert found.renamed["head.fc3.bias"] == "cls_head_finetune.8.bias"


@pytest.mark.parametrize("key", ["model", "base_model", "model_state_dict", None])
def test_state_dict_is_found_under_every_known_key(key: str | None) -> None:
    state = {"a.weight": torch.zeros(1)}
    checkpoint = state if key is None else {key: state, "epoch": 3}
    assert list(strip_reference(checkpoint)[0]) == ["a.weight"]


def test_model_is_preferred_over_base_model() -> None:
    both = {"base_model": {"old": torch.zeros(1)}, "model": {"new": torch.zeros(1)}}
    assert list(strip_reference(both)[0]) == ["new"]


def test_pointmae_is_recognized_in_both_layouts() -> None:
    pretrained = read_checkpoint(pointmae(), source="file")
    assert pretrained.kind == "pointmae"
    assert "decoder.head.weight" in pretrained.state
    bare = {
        key.removeprefix("MAE_encoder."): value
        for key, value in pointmae()["base_model"].items()
        if key.startswith("MAE_encoder.")
    }
    bare["cls_token"] = bare["cls_pos"] = torch.ones(1, 1, 12)
    finetuned = read_checkpoint({"base_model": bare}, source="file")
    assert finetuned.kind == "pointmae"
    assert finetuned.state["encoder.class_token"].all()
    shared = finetuned.state.keys() & pretrained.state.keys()
    assert all(torch.equal(finetuned.state[key], pretrained.state[key]) for key in shared)
    assert len(shared) == len(finetuned.state) - 2


def test_own_states_tell_their_kind() -> None:
    for kind in TINY:
        state = make_model(kind).state_dict()
        assert from_own(state, SIZES, source="run").kind == kind
    with pytest.raises(CheckpointError, match="run: the weights do not belong to a model"):
        from_own({"a": torch.zeros(1)}, {}, source="run")


def test_the_references_names_in_safetensors_are_read_too(tmp_path: Path) -> None:
    weights = make_weights("recon")
    save_file(to_reference(weights.state), tmp_path / "w.safetensors")
    assert same(read_file(tmp_path / "w.safetensors"), weights)


METRICS = {
    "train_acc": np.float64(0.95),
    "test_acc": np.float32(0.5),
    "class_avg_iou": np.float64(0.85),
    "epoch": np.int64(299),
    "done": np.bool_(True),
}


def write_pickle(content: object, path: Path, *, module: str) -> None:
    """Write a torch file in which numpy's scalars are called what a numpy of another age does."""
    torch.save(content, path.with_suffix(".now"))
    with zipfile.ZipFile(path.with_suffix(".now")) as now, zipfile.ZipFile(path, "w") as then:
        for name in now.namelist():
            data = now.read(name)
            if name.endswith("/data.pkl"):
                assert b".multiarray" in data
                data = re.sub(rb"numpy\._?core\.multiarray", module.encode(), data)
            then.writestr(name, data)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpys_numbers_beside_the_weights_become_plain(module: str, tmp_path: Path) -> None:
    path = tmp_path / "best_model.pth"
    write_pickle({**published("partseg"), **METRICS}, path, module=module)
    found = read_file(path)
    assert same(found, make_weights("partseg"))
    assert found.extra == METRICS
    assert {type(value) for value in found.extra.values()} == {float, int, bool}


def test_numbers_of_either_byte_order_are_read(tmp_path: Path) -> None:
    swapped = np.array([0.85], dtype=">f8")[0]
    content = {
        **published("partseg"),
        "class_avg_iou": swapped,
        "other": Scalar(">f8", b"?\xf0" + bytes(6)),
    }
    torch.save(content, tmp_path / "w.pth")
    extra = read_file(tmp_path / "w.pth").extra
    assert (extra["class_avg_iou"], extra["other"]) == (0.85, 1.0)


class Scalar:
    """Is pickled as a scalar of numpy, of any type."""

    def __init__(self, code: str, content: object) -> None:
        self.code, self.content = code, content

    def __reduce__(self) -> tuple:
        make = np.float64(0).__reduce__()[0]
        return make, (np.dtype(self.code), self.content)


class Payload:
    """Stands for code hidden in a pickle."""

    def __reduce__(self) -> tuple:
        return (os.system, ("touch /tmp/never",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"base_model": Payload()}, r"it holds more than plain data \((posix|nt)\.system\) and is"),
        (
            {"base_model": {}, "acc": np.float64(1), "epoch": Payload()},
            r"it holds more than plain data \((posix|nt)\.system\) and is",
        ),
        ({"acc": Scalar("O", [])}, "it cannot be read as a weights file"),
        ({"acc": Scalar("V8", bytes(8))}, "it cannot be read as a weights file"),
        ({"acc": Scalar("f8", bytes(4))}, "it cannot be read as a weights file"),
        ({"base_model": {"bert.layer.0": torch.zeros(1)}}, "another family of models .*bert.layer"),
        (
            {"model.encoder.blocks.global_blocks.0.norm1.weight": torch.zeros(1)},
            "of ReCon\\+\\+, another family",
        ),
        ({"epoch": 3}, "no weights found.*'epoch'"),
        ([torch.zeros(1)], "it holds a list, expected a dict of weights"),
        ({"MAE_encoder.norm.weight": torch.zeros(4)}, "have no encoder.embed.fc4.weight"),
    ],
)
def test_other_files_are_refused_by_name(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"weights\.pth: .*{message}"):
        read_file(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_and_foreign_files_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(published("recon"), path)
    else:
        write(make_weights("recon"), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=rf"w\{suffix}: it cannot be read as a"):
        read_file(path)
    path.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=rf"w\{suffix}: it "):
        read_file(path)
    with pytest.raises(CheckpointError, match=r"absent\.pth: no such file"):
        read_file(tmp_path / "absent.pth")


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = write(make_weights("recon"), tmp_path / "w.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    save_file(state, path, metadata={**metadata, "format": "recon_ray 9"})
    with pytest.raises(CheckpointError, match="format 'recon_ray 9', this version reads"):
        read_file(path)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        write(make_weights("embedder"), blocked / "w.safetensors")
    assert list(tmp_path.iterdir()) == [blocked]
