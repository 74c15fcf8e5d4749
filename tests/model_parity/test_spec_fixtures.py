"""Numbers obtained once by running the original on a small synthetic case (float32 on a CPU).

Clouds and weights come from closed formulas, so the numbers below are all there is to store. The
tolerance of 1e-4 absolute covers their six printed digits and another order of summation.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from recon_ray.losses.chamfer import chamfer
from recon_ray.losses.contrast import self_contrast
from recon_ray.losses.pretrain import pretrain_losses
from recon_ray.models.presets import MODELS, arguments_of, kind_of
from recon_ray.points import ops
from recon_ray.weights.adapters import to_reference
from recon_ray.weights.load import initialize
from recon_ray.weights.weight_files import read_checkpoint

LINEAR, MDM, CMC = {"head": "linear"}, {"stream": "MDM"}, {"stream": "CMC"}
SKIP = 1e-3  # the reference's sampling skips points this near to the origin (squared norm)
TOY = {
    "embed_dim": 24, "depth": 3, "num_heads": 3, "group_size": 8, "num_groups": 8,
    "decoder_depth": 2, "fps_min_sq_norm": SKIP,
}  # fmt: skip


def make_cloud(batch: int, count: int) -> torch.Tensor:
    i = np.arange(count, dtype=np.float64)
    direction = np.stack([np.sin(1.7 * i + batch), np.cos(2.3 * i), np.sin(0.9 * i + 0.5)], axis=1)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radius = 0.4 + 0.6 * ((7 * i) % 11) / 10
    return torch.from_numpy((direction * radius[:, None]).astype(np.float32))


def formula_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the reference state dict in which every value follows from the key's length."""
    weights = {}
    for key, value in to_reference(model.state_dict(), kind_of(model)).items():
        if not value.is_floating_point():
            weights[key] = value
            continue
        k = np.arange(value.numel(), dtype=np.float64)
        s = (0.2 * np.sin(0.37 * (k + 1) + len(key))).astype(np.float32)
        is_scale = key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight"))
        s = 1 + 0.5 * s if is_scale else s
        weights[key] = torch.from_numpy(s).view(value.shape)
    return weights


def build(kind: str, **arguments: object) -> nn.Module:
    toy = {name: value for name, value in TOY.items() if name in arguments_of(kind)}
    model = MODELS[kind](**toy, **arguments)
    weights = read_checkpoint(formula_weights(model), source="formula")
    assert not initialize(model, weights, strict=True).unexpected
    return model.eval()


@pytest.fixture
def clouds() -> torch.Tensor:
    return torch.stack([make_cloud(0, 64), make_cloud(1, 64)])


def test_cloud_formula() -> None:
    expected = torch.tensor([0.277257, -0.432237, 0.639296])
    torch.testing.assert_close(make_cloud(1, 2)[1], expected, atol=1e-6, rtol=0)


def test_furthest_points_and_nearest_neighbors(clouds: torch.Tensor) -> None:
    indices, centers = ops.furthest_point_sample(clouds, 8, min_sq_norm=SKIP)
    assert indices[0].tolist() == [0, 61, 42, 25, 58, 7, 20, 50]
    assert indices[1].tolist() == [0, 61, 28, 34, 42, 25, 14, 31]
    _, indices = ops.knn(clouds, centers, 8)
    found = [sorted(row) for row in indices[0, :3].tolist()]
    assert found == [
        [0, 8, 22, 30, 35, 44, 52, 63],
        [4, 13, 18, 26, 39, 40, 53, 61],
        [1, 9, 15, 23, 37, 42, 45, 56],
    ]


def test_sampling_skips_points_near_the_origin(clouds: torch.Tensor) -> None:
    cloud = clouds[:1].clone()
    cloud[0, 5] = torch.tensor([0.01, 0.02, 0.01])
    cloud[0, 6:10] *= 0.03 / cloud[0, 6:10].norm(dim=-1, keepdim=True)
    indices = ops.furthest_point_sample(cloud, 64, min_sq_norm=SKIP)[0][0].tolist()
    start = "0 61 42 25 58 50 10 20 46 48 3 37 54 29 38 14 18 17 39 55 26 16 2 24 45 28 35 36 11"
    assert indices[:29] == [int(index) for index in start.split()]
    assert indices[-6:] == [57, 0, 0, 0, 0, 0]
    assert not set(range(5, 10)) & set(indices)


def test_svm_and_zero_shot_features(clouds: torch.Tensor) -> None:
    features = build("embedder").svm_features(clouds)
    expected = {
        (0, 0): [-0.335094, 1.247878, -0.928618, -0.515165],
        (0, 24): [-0.575101, 2.871993, -2.655846, 0.116212],
    }
    for (row, start), values in expected.items():
        torch.testing.assert_close(
            features[row, start : start + 4], torch.tensor(values), atol=1e-4, rtol=0
        )
    assert features.sum().item() == pytest.approx(-3.042398, abs=1e-3)
    model = build("embedder", image_dim=10, text_dim=10)
    feature = 0.25 * model.encode_text(clouds) + model.encode_image(clouds)
    expected = torch.tensor([1.432420, -0.955778, 1.009043, 0.045223])
    torch.testing.assert_close(feature[0, :4], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "arguments", "row", "logits"),
    [
        ("classifier", {}, 0, [-2.916378, -3.419306, -3.180213, -2.245418, -0.813464]),
        ("classifier", {}, 1, [-2.916424, -3.419367, -3.180276, -2.245470, -0.813492]),
        ("classifier", LINEAR, 0, [0.120478, -0.285404, -0.024486, 0.299713, -0.113365]),
        ("classifier", LINEAR, 1, [0.121500, -0.286249, -0.024543, 0.300623, -0.114348]),
        ("twotower_classifier", {}, 0, [-3.261047, -3.902134, -3.695519, -2.680414, -1.072936]),
        ("twotower_classifier", MDM, 0, [-3.011764, -3.549713, -3.317099, -2.358822, -0.878562]),
        ("twotower_classifier", CMC, 0, [-3.112112, -3.700879, -3.485994, -2.508479, -0.976225]),
    ],
)
def test_logits(
    clouds: torch.Tensor, kind: str, arguments: dict, row: int, logits: list[float]
) -> None:
    quirk = {"drop_first_patches": True} if kind == "twotower_classifier" else {}
    model = build(kind, num_classes=5, **arguments, **quirk)
    torch.testing.assert_close(model(clouds)[row], torch.tensor(logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("kind", "value"), [("l2", 0.680326), ("l1", 0.529275)])
def test_pretraining_losses(clouds: torch.Tensor, kind: str, value: float) -> None:
    model = build("recon", image_dim=10, text_dim=12, self_contrast=True)
    mask = torch.tensor([[0, 1, 0, 1, 1, 0, 1, 0], [1, 0, 1, 0, 0, 1, 0, 1]], dtype=torch.bool)
    losses = pretrain_losses(
        model(clouds, mask=mask),
        image_features=0.1 * torch.sin(torch.arange(20.0)).view(2, 10),
        text_features=0.1 * torch.cos(torch.arange(24.0)).view(2, 12),
        labels=torch.tensor([0, 1]),
        chamfer=kind,
    )
    expected = {
        "reconstruction": value,
        "image_distill": 0.329799,
        "text_distill": 0.379741,
        "self_contrast": 0.693147,
    }
    expected["loss"] = sum(expected.values())
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected, abs=1e-4)


def test_self_contrast_rows() -> None:
    z = torch.sin(0.7 * torch.arange(24.0)).view(6, 4)
    z = z / z.norm(dim=-1, keepdim=True)
    loss = self_contrast(z, torch.tensor([0, 1, 0, 2, 1, 0]))
    rows = [0.003508, 4.496031, 2.753536, 0.129977, 4.326724, 4.554079]
    assert float(loss) == pytest.approx(math.fsum(rows) / 6, abs=1e-4)


def test_chamfer_of_unequal_sets() -> None:
    a, b = make_cloud(0, 5)[None], make_cloud(1, 7)[None]
    assert float(chamfer(a, b)) == pytest.approx(0.296125, abs=1e-4)
    assert float(chamfer(a, b, squared=False)) == pytest.approx(0.359013, abs=1e-4)
