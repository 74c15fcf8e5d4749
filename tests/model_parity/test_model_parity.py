"""Our models against stored outputs of the reference, for equal weights and inputs.

Tolerances: the packs are float32 on a CPU, where two correct implementations differ by the order of
summation: 1e-4 relative for outputs, 1e-3 for gradients and for training steps, which add up such
differences.
"""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from golden_packs import GOLDEN, Pack, find_packs

from recon_ray.losses.pretrain import pretrain_losses
from recon_ray.models.grouping import cut_patches
from recon_ray.models.recon import Recon
from recon_ray.train.optim import CosineSchedule, parameter_groups
from recon_ray.weights.adapters import load_reference, to_reference

LOSS_NAMES = {
    "mdm": "reconstruction",
    "csc_img": "image_distill",
    "csc_text": "text_distill",
    "smc": "self_contrast",
    "total": "loss",
}
INPUTS = ("points", "img_feature", "text_feature", "mask")
NOT_BUILT = {
    "finetune": "the fine-tuning model is not built yet",
    "twotower": "the two-tower model is not built yet",
    "partseg": "the part-segmentation model is not built yet",
    "reconpp": "the ReCon++ models are not built yet",
}
PACKS = find_packs()
SCHEDULES = json.loads((GOLDEN / "lr_schedule.json").read_text())


def _build(pack: Pack, model_class: str, kind: str, **overrides: object) -> Recon:
    """Build our model of a pack's shape with the formula's weights, through the importer."""
    config = pack.meta["config"]
    arguments = {
        "embed_dim": config["dim"],
        "depth": config["depth"],
        "num_heads": config["heads"],
        "num_groups": config["G"],
        "group_size": config["K"],
        "decoder_depth": config["ddepth"],
        "drop_path": 0.0,
        "fps_min_sq_norm": 1e-3,
        **overrides,
    }
    with torch.device("meta"):  # skips the initialization, the slowest part of a large model
        model = Recon(**arguments)
    model.to_empty(device="cpu")
    weights = {f"module.{key}": value for key, value in pack.weights(model_class).items()}
    report = load_reference(model, {"base_model": weights}, kind, strict=kind == "recon")
    assert not report.unexpected
    assert not [key for key in report.missing if not key.startswith("decoder.")]
    return model


def _build_recon(pack: Pack) -> Recon:
    config = pack.meta["config"]
    return _build(
        pack,
        "ReCon",
        "recon",
        image_dim=config["img_dim"],
        text_dim=config["text_dim"],
        self_contrast=True,
    )


def _losses(pack: Pack, model: Recon, loss: str) -> dict[str, torch.Tensor]:
    labels = [pack.meta["text_labels"].index(text) for text in pack.meta["text_labels"]]
    return pretrain_losses(
        model(pack.tensor("points"), mask=pack.tensor("mask")),
        image_features=pack.tensor("img_feature"),
        text_features=pack.tensor("text_feature"),
        labels=torch.tensor(labels),
        chamfer={"cdl1": "l1", "cdl2": "l2"}[loss],
    )


@cache
def _recon_run(pack: Pack, loss: str, mode: str) -> dict[str, np.ndarray]:
    """Give all arrays ``recon/<loss>/<mode>/*``."""
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
    """Give the losses before each of five optimizer steps, and parameter norms after them."""
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
    model_class = f"PointTransformerZeroShot/{kind}"
    shapes = pack.meta["state_dict_shapes"][model_class]
    dims = {
        ours: shapes[key][0] if key in shapes else None
        for ours, key in (("image_dim", "img_proj.weight"), ("text_dim", "text_proj.weight"))
    }
    model = _build(pack, model_class, "zeroshot", **dims).eval()
    points = pack.tensor("points")
    with torch.no_grad():
        if kind == "full":
            return (0.25 * model.encode_text(points) + model.encode_image(points)).numpy()
        encode = model.encode_text if kind == "text" else model.encode_image
        return encode(points).numpy()


@cache
def _svm(pack: Pack) -> np.ndarray:
    model = _build(pack, "PointTransformerSVM", "encoder", image_dim=None, text_dim=None).eval()
    with torch.no_grad():
        return model.svm_features(pack.tensor("points")).numpy()


def _compute(pack: Pack, name: str) -> np.ndarray:
    """Compute the array of a recon pack."""
    if name.startswith("group_"):
        return _groups(pack)[name]
    family, *rest = name.split("/")
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
            if pack.kind == "teacher" or name in INPUTS:
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


@pytest.mark.parametrize("pack", [p for p in PACKS if p.kind == "recon"], ids=lambda p: p.name)
def test_import_and_export_are_exact(pack: Pack) -> None:
    weights = pack.weights("ReCon")
    exported = to_reference(_build_recon(pack).state_dict())
    assert set(exported) == set(weights)
    assert all(torch.equal(exported[key], weights[key]) for key in weights)


def test_packs_of_the_repository_are_found() -> None:
    assert {"small", "base"} <= {pack.name for pack in PACKS}


@pytest.mark.parametrize(("line", "rates"), SCHEDULES.items(), ids=list(SCHEDULES))
def test_schedule_equals_reference(line: str, rates: list[float]) -> None:
    options = dict(part.split("=") for part in line.split(","))
    schedule = CosineSchedule(int(options["epochs"]), float(options["warmup"]))
    actual = [schedule.lr(float(options["lr"]), epoch) for epoch in range(len(rates))]
    np.testing.assert_allclose(actual, rates, rtol=1e-9)
    assert schedule.trained_epochs == len(rates)
