from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from recon_ray.models.recon import Recon
from recon_ray.train.optim import CosineSchedule, parameter_groups


@pytest.fixture
def model() -> Recon:
    sizes = {"embed_dim": 12, "depth": 1, "num_heads": 2, "decoder_depth": 1, "image_dim": 3}
    return Recon(**sizes, patch_widths=(4, 4, 8), text_dim=3, self_contrast=True)


def names_of(model: torch.nn.Module, groups: list[dict]) -> dict[str, set[str]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {g["name"]: {names[id(p)] for p in g["params"]} for g in groups}


def test_pretraining_decays_positions_but_no_tokens_biases_and_vectors(model: Recon) -> None:
    groups = parameter_groups(model, lr=1e-3, weight_decay=0.05)
    names = names_of(model, groups)
    assert list(names) == ["head", "no_decay", "decay"]
    assert not names["head"]
    assert names["decay"] | names["no_decay"] == {name for name, _ in model.named_parameters()}
    assert not names["decay"] & names["no_decay"]
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0, 0.05]
    torch.optim.AdamW(groups)  # an empty group is legal
    assert {"encoder.class_pos", "encoder.image_pos", "encoder.text_pos"} <= names["decay"]
    assert {"encoder.embed.fc1.weight", "encoder.pos_embed.fc2.weight"} <= names["decay"]
    tokens = {"encoder.class_token", "encoder.image_token", "decoder.mask_token"}
    assert tokens <= names["no_decay"]
    assert {"encoder.norm.weight", "encoder.embed.norm1.weight", "image_proj.bias"} <= names[
        "no_decay"
    ]


def test_head_learns_ten_times_faster_and_decays_throughout(model: Recon) -> None:
    wrapped = torch.nn.ModuleDict({"module": model})
    groups = parameter_groups(
        wrapped, lr=1e-3, weight_decay=0.05, head=lambda name: name.startswith("contrast_head.")
    )
    head = groups[0]
    assert head["lr"] == head["base_lr"] == pytest.approx(1e-2)
    assert head["weight_decay"] == 0.05
    assert len(head["params"]) == len(list(model.contrast_head.parameters()))


def test_frozen_parameters_are_left_out(model: Recon) -> None:
    model.encoder.requires_grad_(False)
    names = names_of(model, parameter_groups(model, lr=1e-3, weight_decay=0.05))
    assert not [name for group in names.values() for name in group if name.startswith("encoder.")]


PUBLISHED_RATES = {
    0: 1e-6, 1: 1e-6, 2: 5.09e-5, 10: 4.501e-4, 11: 4.98633e-4, 12: 4.98347e-4, 100: 3.77506e-4,
    150: 2.53113e-4, 200: 1.2802e-4, 300: 1.01368e-6,
}  # fmt: skip


@pytest.mark.parametrize(("epoch", "rate"), PUBLISHED_RATES.items())
def test_reference_schedule_has_the_published_rates(epoch: int, rate: float) -> None:
    schedule = CosineSchedule(300, 10, lags=True)
    assert schedule.lr(5e-4, epoch) == pytest.approx(rate, rel=1e-5)
    assert schedule.lr(5e-4, epoch + 0.9) == schedule.lr(5e-4, epoch)  # changes once an epoch


def test_reference_schedule_of_a_smaller_rate() -> None:
    schedule = CosineSchedule(300, 10, lags=True)
    rates = [schedule.lr(2e-5, epoch) for epoch in (2, 11, 150)]
    assert rates == pytest.approx([2.9e-6, 1.9948e-5, 1.05995e-5], rel=1e-4)


def test_sound_schedule_is_continuous_and_reaches_both_ends() -> None:
    schedule = CosineSchedule(20, 2)
    assert schedule.lr(1e-3, 0) == 1e-6
    assert schedule.lr(1e-3, 1) == pytest.approx((1e-3 + 1e-6) / 2)
    assert schedule.lr(1e-3, 2) == pytest.approx(1e-3)
    assert schedule.lr(1e-3, 11) == pytest.approx((1e-3 + 1e-6) / 2)
    assert schedule.lr(1e-3, 20) == pytest.approx(1e-6)
    rates = [schedule.lr(1e-3, step / 100) for step in range(2001)]
    largest_step = max(abs(b - a) for a, b in pairwise(rates))
    assert largest_step <= 1e-3 / 200 + 1e-9  # that of the warm-up
    assert rates[200:] == sorted(rates[200:], reverse=True)
    assert CosineSchedule(5, 0).lr(1e-3, 0) == pytest.approx(1e-3)
    assert CosineSchedule(5, 5).lr(1e-3, 5) == pytest.approx(1e-3)


@pytest.mark.parametrize("lags", [False, True])
def test_the_smallest_rate_is_that_of_both_ends(lags: bool) -> None:
    schedule = CosineSchedule(20, 2, min_lr=1e-4, lags=lags)
    assert schedule.lr(1e-3, 0) == 1e-4
    assert schedule.lr(1e-3, 21) == pytest.approx(1e-4)
    middle = schedule.lr(1e-3, 2 if lags else 1)  # the reference lags by an epoch
    assert middle == pytest.approx((1e-3 + 1e-4) / 2)
