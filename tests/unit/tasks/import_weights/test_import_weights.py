from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import recon_ray
from recon_ray.cli import run_job
from recon_ray.errors import CheckpointError
from recon_ray.models.classifier import Classifier
from recon_ray.models.recon import Recon
from recon_ray.weights.adapters import to_reference
from recon_ray.weights.weight_files import read_file

SIZES = {"embed_dim": 64, "depth": 2, "num_heads": 1, "patch_widths": (4, 4, 8)}


def run(folder: Path, *arguments: object) -> int:
    given = [*map(str, arguments), f"run.storage={folder / 'runs'}"]
    return run_job("import_weights", given)


@pytest.fixture
def model() -> Recon:
    torch.manual_seed(0)
    return Recon(**SIZES, decoder_depth=1, image_dim=3, text_dim=3)


@pytest.fixture
def file(model: Recon, tmp_path: Path) -> Path:
    state = to_reference(model.state_dict())
    state["text_encoder.transformer.x"] = torch.zeros(1)
    torch.save({"base_model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "full.pth")
    return tmp_path / "full.pth"


def same_state(path: Path, model: torch.nn.Module) -> bool:
    state, own = read_file(path).state, model.state_dict()
    return state.keys() == own.keys() and all(torch.equal(state[key], own[key]) for key in own)


def test_a_file_goes_to_safetensors_and_back_bit_by_bit(
    file: Path, model: Recon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.pth"
    assert run(tmp_path, f"input={file}", f"output={ours}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "renamed     MAE_encoder.cls_token -> encoder.class_token" in lines
    assert "unexpected  text_encoder.transformer.x (teacher)" in lines
    result = json.loads(Path(lines[-1]).read_text())
    assert result["counts"] == {
        "loaded": len(model.state_dict()), "missing": 0, "unexpected": 0, "unknown": 0,
        "teachers": 1,
    }  # fmt: skip
    assert result["kind"] == "recon"
    assert result["architecture"]["group_size"] == 32
    assert same_state(ours, model)
    assert run(tmp_path, f"input={ours}", f"output={theirs}", "format=reference") == 0
    assert same_state(theirs, model)
    exported = torch.load(theirs, weights_only=True)["base_model"]
    original = torch.load(file, weights_only=True)["base_model"]
    del original["module.text_encoder.transformer.x"]
    assert {f"module.{key}" for key in exported} == original.keys()
    assert all(
        torch.equal(exported[key.removeprefix("module.")], original[key]) for key in original
    )


def test_the_encoder_alone_can_be_taken(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "encoder.safetensors"
    assert run(tmp_path, f"input={file}", f"output={output}", "kind=embedder") == 0
    found = read_file(output)
    assert found.kind == "embedder"
    assert not [key for key in found.state if key.startswith("decoder.")]
    assert "decoder_depth" not in found.architecture
    points = torch.randn(2, 128, 3)
    told = {"num_heads": 1, "num_groups": 64}
    expected = recon_ray.embed(recon_ray.load_model(file, **told), points)
    with pytest.raises(
        CheckpointError, match="does not record num_heads and num_groups of the emb"
    ):
        recon_ray.load_model(output)
    loaded = recon_ray.load_model(output, **told)
    assert torch.equal(recon_ray.embed(loaded, points), expected)


def test_a_dry_run_writes_nothing(file: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    assert run(tmp_path, f"input={file}", f"output={tmp_path / 'x.safetensors'}", "--dry-run") == 0
    assert sorted(tmp_path.iterdir()) == before


def test_a_fine_tuned_file_keeps_its_classes_and_asks_for_its_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = to_reference(Classifier(num_classes=7, **SIZES).state_dict(), "classifier")
    torch.save({"base_model": state, "metrics": {"acc": torch.tensor(91.26)}}, tmp_path / "ft.pth")
    output = tmp_path / "ft.safetensors"
    assert run(tmp_path, f"input={tmp_path / 'ft.pth'}", f"output={output}") == 0
    again = "set model.num_heads=... model.num_groups=... model.group_size=... wherever it is read"
    assert again in capsys.readouterr().err
    told = ("model.num_heads=1", "model.num_groups=16", "model.group_size=8")
    assert run(tmp_path, f"input={tmp_path / 'ft.pth'}", f"output={output}", *told) == 0
    model = recon_ray.load_model(output)
    assert (model.num_classes, model.num_groups, model.group_size) == (7, 16, 8)
    exported = tmp_path / "back.pth"
    assert run(tmp_path, f"input={output}", f"output={exported}", "format=reference") == 0
    assert "configuration: num_heads=1 num_groups=16 group_size=8" in capsys.readouterr().err
    again = recon_ray.load_model(exported).arguments
    assert json.dumps(again, sort_keys=True) == json.dumps(model.arguments, sort_keys=True)
