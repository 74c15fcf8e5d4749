"""Sizes that no shape of the weights tells: from the file, published weights or the user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from weights_samples import TINY, equal, make_model, make_weights, published

import recon_ray
from recon_ray.errors import CheckpointError
from recon_ray.models.presets import whole_arguments
from recon_ray.weights.find import find_weights
from recon_ray.weights.load import build
from recon_ray.weights.weight_files import save_reference

SIZES = {"num_heads": 2, "num_groups": 8, "group_size": 16}
POINTS = torch.randn(2, 64, 3)


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("kind", TINY)
def test_a_saved_model_is_the_same_model_again(kind: str, tmp_path: Path) -> None:
    model = make_model(kind, **SIZES)
    records = {"num_points": 512}
    recon_ray.save_model(model, tmp_path / "w.safetensors", records=records)
    found = recon_ray.load_model(tmp_path / "w.safetensors")
    assert type(found) is type(model)
    assert found.arguments == json.loads(json.dumps(model.arguments))
    assert equal(found, model)
    assert find_weights(tmp_path / "w.safetensors").extra == records


def test_a_saved_model_has_its_suffix(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"w\.pt: the file name must end in \.safetensors"):
        recon_ray.save_model(make_model("recon"), tmp_path / "w.pt")


@pytest.mark.parametrize(
    "prefix", ["", "model.", "module.", "_orig_mod.", "module.model._orig_mod."]
)
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
@pytest.mark.parametrize("kind", TINY)
def test_a_plain_state_dict_of_ours_is_read(
    kind: str, key: str | None, prefix: str, tmp_path: Path
) -> None:
    model = make_model(kind, **SIZES)
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    if prefix == "model.":
        state["criterion.weight"] = torch.zeros(1)
    content = state if key is None else {key: state, "epoch": 3}
    weights = find_weights(saved(tmp_path / "w.pt", content))
    assert weights.kind == kind
    assert "unknown" not in weights.state
    with pytest.raises(CheckpointError, match="does not record num_heads and num_groups"):
        build(weights)
    told = SIZES | {name: model.arguments[name] for name in ("stream", "feature_blocks")
                    if name in model.arguments}  # fmt: skip
    assert equal(build(weights, **told)[0], model)


def test_the_file_wins_over_published_sizes_and_options_over_both(tmp_path: Path) -> None:
    name = "recon_modelnet40_8k"
    bare = saved(tmp_path / "bare.pth", published("classifier", **SIZES))
    weights = find_weights(bare, published=name)
    assert weights.sizes == {"num_heads": 6, "num_groups": 512, "group_size": 32}
    assert set(weights.origins.values()) == {name}
    assert weights.extra["num_points"] == 8192
    save_reference(tmp_path / "whole.pth", make_weights("classifier", **SIZES))
    weights = find_weights(tmp_path / "whole.pth", published=name, num_groups=32)
    assert weights.sizes == {**SIZES, "num_groups": 32}
    assert weights.origins == {"num_groups": "options"}


def test_the_number_of_heads_cannot_be_changed(tmp_path: Path) -> None:
    save_reference(tmp_path / "w.pth", make_weights("recon", **SIZES))
    with pytest.raises(CheckpointError, match="trained with num_heads=2, but num_heads=3"):
        find_weights(tmp_path / "w.pth", num_heads=3)
    with pytest.raises(CheckpointError, match="trained with num_heads=2, but num_heads=4"):
        recon_ray.load_model(tmp_path / "w.pth", num_heads=4)


@pytest.mark.parametrize("source", ["recon.pth", "my-run"])
def test_a_converted_file_of_an_earlier_version_does_not_guess(source: str, tmp_path: Path) -> None:
    """Heads of a foreign file were width / 64 there; of a run, defaults were left out."""
    model = make_model("classifier", **{**SIZES, "num_groups": 64})
    sizes = {k: v for k, v in model.arguments.items() if k in ("embed_dim", "num_heads", "depth",
             "patch_widths", "num_classes", "group_size")}  # fmt: skip
    metadata = {
        "format": "recon_ray 1",
        "kind": "classifier",
        "architecture": json.dumps(sizes),
        "extra": json.dumps({"source": source}),
    }
    save_file(model.state_dict(), tmp_path / "w.safetensors", metadata=metadata)
    weights = find_weights(tmp_path / "w.safetensors")
    if source == "recon.pth":
        with pytest.raises(CheckpointError, match="does not record num_heads and num_groups"):
            build(weights)
    else:
        assert weights.architecture == whole_arguments("classifier", json.loads(json.dumps(sizes)))
        assert torch.equal(build(weights)[0].eval()(POINTS), model.eval()(POINTS))


def test_sizes_decide_what_a_model_computes(tmp_path: Path) -> None:
    """The same tensors with other sizes give other logits: no default is harmless."""
    model = make_model("classifier", **SIZES).eval()
    bare = saved(tmp_path / "w.pth", {"state_dict": model.state_dict()})
    right = recon_ray.load_model(bare, **SIZES)
    assert torch.equal(right(POINTS), model(POINTS))
    for name, value in {"num_heads": 3, "num_groups": 4, "group_size": 8}.items():
        other = recon_ray.load_model(bare, **{**SIZES, name: value})
        assert not torch.allclose(other(POINTS), model(POINTS))
