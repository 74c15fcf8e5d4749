"""Our models against stored outputs of the reference, for equal weights and inputs.

Tolerances: the packs are float32 on a CPU, where two correct implementations differ by the order of
summation: 1e-4 relative for outputs, 1e-3 for gradients and for training steps, which add up such
differences.
"""

from __future__ import annotations

import json
import tempfile
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_packs import GOLDEN, Pack, find_packs
from settings_samples import make_settings
from torch import nn

from recon_ray.losses.downstream import classification_losses
from recon_ray.losses.pretrain import pretrain_losses
from recon_ray.models.classifier import is_head_parameter
from recon_ray.models.grouping import cut_patches
from recon_ray.models.recon import Recon
from recon_ray.train.optim import CosineSchedule, parameter_groups
from recon_ray.weights.adapters import to_reference
from recon_ray.weights.load import build
from recon_ray.weights.weight_files import LoadedWeights, read_file, save_reference

LOSS_NAMES = {
    "mdm": "reconstruction",
    "csc_img": "image_distill",
    "csc_text": "text_distill",
    "smc": "self_contrast",
    "total": "loss",
}
INPUTS = ("points", "img_feature", "text_feature", "mask", "category")
NOT_BUILT = {"reconpp": "the ReCon++ models are not built yet"}
PACKS = find_packs()
SCHEDULES = json.loads((GOLDEN / "lr_schedule.json").read_text())


def _file(pack: Pack, model_class: str, folder: Path) -> Path:
    """Write a file as the reference would, from a parallel run, with the formula's weights."""
    state = {f"module.{key}": value for key, value in pack.weights(model_class).items()}
    path = folder / f"{pack.name}-{model_class.replace('/', '-')}.pth"
    key = "model_state_dict" if model_class == "PartSegmentation" else "base_model"
    torch.save({key: state, "epoch": 300}, path)
    return path


@lru_cache(maxsize=1)
def _weights(pack: Pack, model_class: str) -> LoadedWeights:
    with tempfile.TemporaryDirectory() as folder:
        return read_file(_file(pack, model_class, Path(folder)))


def _build(pack: Pack, model_class: str, **overrides: object) -> nn.Module:
    """Build our model of a pack through the importer: nothing may be missing."""
    config = pack.meta.get("config", {"heads": 6, "G": 128, "K": 32})
    weights = _weights(pack, model_class)
    sizes = {"num_heads": config["heads"], "num_groups": config["G"], "group_size": config["K"]}
    model, report = build(weights, **sizes, **{"drop_path": 0.0, **overrides})
    assert not report.missing
    assert not report.unexpected
    assert not report.unknown
    return model


def _build_recon(pack: Pack) -> Recon:
    return _build(pack, "ReCon")


def _losses(
    pack: Pack, model: nn.Module, loss: str, *, contrast: bool = True
) -> dict[str, torch.Tensor]:
    labels = [pack.meta["text_labels"].index(text) for text in pack.meta["text_labels"]]
    return pretrain_losses(
        model(pack.tensor("points"), mask=pack.tensor("mask")),
        image_features=pack.tensor("img_feature"),
        text_features=pack.tensor("text_feature"),
        labels=torch.tensor(labels) if contrast else None,
        chamfer={"cdl1": "l1", "cdl2": "l2"}[loss],
    )


@cache
def _recon_run(pack: Pack, loss: str, mode: str) -> dict[str, np.ndarray]:
    """Return all arrays ``recon/<loss>/<mode>/*``."""
    model = _build_recon(pack).train(mode == "train")
    losses = _losses(pack, model, loss)
    results = {name: losses[ours].detach().numpy() for name, ours in LOSS_NAMES.items()}
    if mode == "train":
        losses["loss"].backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        grads = to_reference(grads)
        norms = [float(grads[key].norm()) for key in pack.meta["recon_grad_keys"]]
        results["grad_norms"] = np.array(norms)
        results["bn_running_mean0"] = model.encoder.embed.norm1.running_mean.numpy()
    return results


@cache
def _recon_steps(pack: Pack) -> dict[str, np.ndarray]:
    """Return the losses before each of five optimizer steps, and parameter norms after them."""
    model = _build_recon(pack).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=1e-3, weight_decay=0.05))
    totals = []
    for _ in range(5):
        loss = _losses(pack, model, "cdl2")["loss"]
        totals.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = to_reference(model.state_dict())
    norms = {f"param_norm/{key}": value.float().norm().numpy() for key, value in state.items()}
    return {"total": np.array(totals), **norms}


@cache
def _groups(pack: Pack) -> dict[str, np.ndarray]:
    config = pack.meta["config"]
    points = pack.tensor("points")
    patches, centers = cut_patches(points, config["G"], config["K"], min_sq_norm=1e-3)
    distances = patches.square().sum(-1).sort(-1).values
    return {"group_center": centers.numpy(), "group_sqdist_sorted": distances.numpy()}


@cache
def _zero_shot(pack: Pack, kind: str) -> np.ndarray:
    model = _build(pack, f"PointTransformerZeroShot/{kind}").eval()
    with torch.no_grad():
        return model.zeroshot_features(pack.tensor("points"), kind=kind, ratio=0.25).numpy()


@cache
def _svm(pack: Pack) -> np.ndarray:
    model = _build(pack, "PointTransformerSVM").eval()
    with torch.no_grad():
        return model.svm_features(pack.tensor("points")).numpy()


@cache
def _logits(pack: Pack, head: str) -> np.ndarray:
    model = _build(pack, f"PointTransformer/{head}").eval()
    with torch.no_grad():
        return model(pack.tensor("points")).numpy()


@cache
def _finetune_steps(pack: Pack, protocol: str) -> np.ndarray:
    """Return the losses before each of five steps of a protocol of the reference."""
    model = _build(pack, "PointTransformer/full", dropout=0.0).train()
    model.set_protocol(protocol)
    groups = parameter_groups(model, lr=1e-4, weight_decay=0.05, head=is_head_parameter)
    optimizer = torch.optim.AdamW(groups)
    points = pack.tensor("points")
    labels = torch.arange(len(points)) % model.num_classes
    values = []
    for _ in range(5):
        loss = classification_losses(model(points), labels)["loss"]
        values.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    return np.array(values)


@cache
def _two_tower(pack: Pack, name: str) -> np.ndarray:
    with torch.no_grad():
        if name == "loss":
            losses = _losses(pack, _build(pack, "TwoTower").eval(), "cdl2", contrast=False)
            return losses["loss"].numpy()
        model = _build(pack, f"PointTransformerTwoTower/{name}", stream=name).eval()
        return model(pack.tensor("points")).numpy()


@cache
def _part_log_probs(pack: Pack) -> np.ndarray:
    model = _build(pack, "PartSegmentation").eval()
    with torch.no_grad():
        log_probs = model(pack.tensor("points"), pack.tensor("category"))
    return log_probs[:, ::8].numpy()


def _compute(pack: Pack, name: str) -> np.ndarray:
    """Compute the array of a recon pack."""
    if name.startswith("group_"):
        return _groups(pack)[name]
    if pack.kind == "partseg":
        return _part_log_probs(pack)
    family, *rest = name.split("/")
    if family == "finetune" and rest[-1] == "loss":
        return _finetune_steps(pack, rest[0])
    if family == "finetune":
        return _logits(pack, rest[0])
    if family == "twotower":
        return _two_tower(pack, rest[0])
    if family == "svm":
        return _svm(pack)
    if family == "zeroshot":
        return _zero_shot(pack, rest[0])
    if family == "recon" and rest[0] == "steps":
        return _recon_steps(pack)["/".join(rest[1:])]
    if family == "recon":
        return _recon_run(pack, rest[0], rest[1])[rest[2]]
    raise NotImplementedError(f"no computation for the array {name} of pack {pack.name}")


def _cases() -> list:
    """Make one case an array, and one skipped case for each family that is not built yet."""
    cases: dict[str, object] = {}
    for pack in PACKS:
        folder = "" if pack.path.parent == GOLDEN else f"{pack.path.parent.name}:"
        for name in pack.names:
            family = name.split("/")[0] if pack.kind == "recon" else pack.kind
            if pack.kind in ("clip", "vit", "other") or name in INPUTS:
                continue
            label = f"{folder}{pack.name}-{family if family in NOT_BUILT else name}"
            marks = [pytest.mark.skip(reason=NOT_BUILT[family])] if family in NOT_BUILT else []
            cases[label] = pytest.param(pack, name, id=label, marks=marks)
    return list(cases.values())


def _tolerance(name: str) -> float:
    return 1e-3 if "grad_norms" in name or "/steps/" in name else 1e-4


@pytest.mark.parametrize(("pack", "name"), _cases())
def test_array_equals_reference(pack: Pack, name: str) -> None:
    expected = pack.array(name)
    actual = _compute(pack, name)
    tolerance = _tolerance(name)
    # Gradients in front of a batch norm are zero in exact arithmetic: rounding noise is compared on
    # the scale of the largest one.
    floor = (1e-5 if "grad_norms" in name else tolerance) * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=floor)


@pytest.mark.parametrize(
    ("pack", "model_class"),
    [
        pytest.param(pack, model_class, id=f"{pack.name}-{model_class}")
        for pack in PACKS
        if pack.name in ("small", "partseg")
        for model_class in pack.shapes
    ],
)
def test_import_and_export_are_exact(pack: Pack, model_class: str, tmp_path: Path) -> None:
    weights = read_file(_file(pack, model_class, tmp_path))
    expected = pack.weights(model_class)
    exported = to_reference(weights.state, weights.kind)
    assert set(exported) == set(expected)
    assert all(torch.equal(exported[key], expected[key]) for key in expected)
    save_reference(tmp_path / "again.pth", weights)
    again = read_file(tmp_path / "again.pth")
    assert again.kind == weights.kind
    assert again.architecture == weights.architecture
    assert again.state.keys() == weights.state.keys()
    assert all(torch.equal(again.state[key], weights.state[key]) for key in weights.state)


def test_packs_of_the_repository_are_found() -> None:
    assert {"small", "base", "partseg"} <= {pack.name for pack in PACKS}


@pytest.mark.parametrize(("line", "rates"), SCHEDULES.items(), ids=list(SCHEDULES))
def test_schedule_equals_reference(line: str, rates: list[float]) -> None:
    options = dict(part.split("=") for part in line.split(","))
    schedule = CosineSchedule(int(options["epochs"]), float(options["warmup"]), lags=True)
    actual = [schedule.lr(float(options["lr"]), epoch) for epoch in range(len(rates))]
    np.testing.assert_allclose(actual, rates, rtol=1e-9)
    settings = make_settings(epochs=schedule.epochs, global_batch_size=32, protocol="reference")
    assert settings.total_epochs == len(rates)
