from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recon_ray.errors import CheckpointError
from recon_ray.models.recon import Recon
from recon_ray.weights.adapters import (
    from_reference,
    load_reference,
    read_reference_file,
    strip_reference,
    to_reference,
)


def make_model(seed: int = 0, **overrides: object) -> Recon:
    torch.manual_seed(seed)
    sizes = {"embed_dim": 12, "depth": 2, "num_heads": 2, "decoder_depth": 1}
    return Recon(**{**sizes, "patch_widths": (4, 4, 8), "image_dim": 3, "text_dim": 3, **overrides})


def published(model: Recon) -> dict:
    """Make a file as the reference writes it from a parallel run, teachers included."""
    state = to_reference(model.state_dict())
    state["img_encoder.model.weight"] = torch.zeros(2)
    return {"base_model": {f"module.{k}": v for k, v in state.items()}, "epoch": 300}


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_names_and_shapes_are_those_of_the_reference() -> None:
    state = to_reference(make_model(self_contrast=True).state_dict())
    assert state["MAE_encoder.encoder.first_conv.0.weight"].shape == (4, 3, 1)
    assert state["MAE_encoder.encoder.second_conv.1.running_mean"].shape == (8,)
    assert state["MAE_encoder.blocks.blocks.1.attn_contrast.kv.weight"].shape == (24, 12)
    assert state["increase_dim.0.weight"].shape == (96, 12, 1)
    assert state["cls_proj.4.num_batches_tracked"].shape == ()
    assert {"mask_token", "MAE_encoder.img_pos", "decoder_pos_embed.2.bias"} <= set(state)


def test_round_trip_is_exact() -> None:
    state = make_model(self_contrast=True).state_dict()
    again, unknown = from_reference(to_reference(state))
    assert not unknown
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_published_file_loads_strictly_without_its_teachers() -> None:
    source, target = make_model(0), make_model(1)
    report = load_reference(target, published(source))
    assert report.missing == report.unexpected == ()
    assert equal(source, target)


@pytest.mark.parametrize("key", ["model", "base_model", "model_state_dict", None])
def test_state_dict_is_found_under_every_known_key(key: str | None) -> None:
    state = {"a.weight": torch.zeros(1)}
    assert list(strip_reference(state if key is None else {key: state, "epoch": 3})) == ["a.weight"]


def test_model_is_preferred_over_base_model() -> None:
    both = {"base_model": {"old": torch.zeros(1)}, "model": {"new": torch.zeros(1)}}
    assert list(strip_reference(both)) == ["new"]


def test_loose_load_reports_both_sides() -> None:
    target = make_model(1, self_contrast=True, text_dim=None)
    checkpoint = published(make_model(0))
    checkpoint["base_model"]["queue"] = torch.zeros(3)
    report = load_reference(target, checkpoint, strict=False)
    assert set(report.unexpected) == {"queue", "text_proj.weight", "text_proj.bias"}
    assert all(name.startswith("contrast_head.") for name in report.missing)
    with pytest.raises(CheckpointError, match=r"missing \(contrast_head.* 3 unexpected \(queue"):
        load_reference(target, checkpoint)


def test_another_size_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"class_token has shape .* choose the preset"):
        load_reference(make_model(embed_dim=24), published(make_model()), strict=False)


def test_content_without_weights_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no weights found.*'epoch'"):
        strip_reference({"epoch": 3})
    with pytest.raises(CheckpointError, match="point-wise convolution"):
        from_reference({"increase_dim.0.weight": torch.zeros(4, 4, 3)})
    with pytest.raises(CheckpointError, match="has no name in the reference"):
        to_reference({"surprise": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no weight table for 'bert'"):
        to_reference({}, "bert") or to_reference({"a": torch.zeros(1)}, "bert")


class Payload:
    """Stands for code hidden in a pickle."""


def test_files_are_read_without_running_their_code(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(published(make_model()), path)
    assert equal(make_model(0), _loaded(path))
    torch.save({"base_model": Payload()}, path)
    with pytest.raises(CheckpointError, match=r"weights\.pth cannot be read as a weights file"):
        read_reference_file(path)
    path.write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match=r"weights\.pth cannot be read"):
        read_reference_file(path)
    with pytest.raises(CheckpointError, match=r"absent\.pth does not exist"):
        read_reference_file(tmp_path / "absent.pth")


def _loaded(path: Path) -> Recon:
    model = make_model(1)
    load_reference(model, read_reference_file(path))
    return model
