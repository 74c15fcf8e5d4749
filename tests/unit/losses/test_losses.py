from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from recon_ray.losses.chamfer import chamfer
from recon_ray.losses.contrast import self_contrast
from recon_ray.losses.distill import smooth_l1_distill
from recon_ray.losses.pretrain import pretrain_losses


def brute_force(a: torch.Tensor, b: torch.Tensor, squared: bool) -> torch.Tensor:
    distances = (a[:, :, None] - b[:, None]).square().sum(-1)
    forward, backward = distances.min(2).values, distances.min(1).values
    if squared:
        return forward.mean() + backward.mean()
    return (forward.sqrt().mean() + backward.sqrt().mean()) / 2


@pytest.mark.parametrize("squared", [True, False])
def test_chamfer_equals_brute_force(squared: bool) -> None:
    a, b = torch.randn(6, 5, 3).requires_grad_(), torch.randn(6, 7, 3).requires_grad_()
    ours, theirs = chamfer(a, b, squared=squared), brute_force(a, b, squared)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    for x, y in zip(
        torch.autograd.grad(ours, (a, b)), torch.autograd.grad(theirs, (a, b)), strict=True
    ):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)


def test_chamfer_joins_leading_axes_promotes_and_has_a_finite_gradient() -> None:
    a, b = torch.randn(2, 3, 5, 3), torch.randn(2, 3, 5, 3)
    assert torch.equal(chamfer(a, b), chamfer(a.flatten(0, 1), b.flatten(0, 1)))
    assert chamfer(a.bfloat16(), b).dtype == torch.float32
    a = torch.zeros(1, 2, 3, requires_grad=True)
    chamfer(a, torch.zeros(1, 2, 3), squared=False).backward()
    assert torch.equal(a.grad, torch.zeros(1, 2, 3))


def by_rows(z: torch.Tensor, labels: list[int], temperature: float = 0.1) -> float:
    similarity = z @ z.T
    losses = []
    for i, label in enumerate(labels):
        same = torch.tensor([other == label for other in labels])
        positive = similarity[i, same].mean() / temperature
        negatives = (similarity[i, ~same] / temperature).exp().sum()
        losses.append(torch.log(positive.exp() + negatives) - positive)
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0], [0, 1, 2, 3, 4, 5], [3, 3, 3, 3, 3, 3]])
def test_self_contrast_equals_its_row_formula(labels: list[int]) -> None:
    z = torch.nn.functional.normalize(torch.randn(6, 8), dim=-1)
    expected = by_rows(z, labels)
    assert float(self_contrast(z, torch.tensor(labels))) == pytest.approx(expected, abs=1e-5)


def test_one_class_has_no_self_contrast_and_each_vector_one_label() -> None:
    z = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1).requires_grad_()
    loss = self_contrast(z, torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(z.grad, torch.zeros_like(z), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\)"):
        self_contrast(torch.randn(4, 8), torch.zeros(3))


def test_distillation_is_quadratic_near_and_linear_far() -> None:
    prediction = torch.tensor([[0.5, 3.0]], requires_grad=True)
    loss = smooth_l1_distill(prediction, torch.zeros(1, 2))
    assert loss.item() == pytest.approx((0.125 + 2.5) / 2)
    loss.backward()
    assert prediction.grad.tolist() == [[0.25, 0.5]]
    with pytest.raises(ValueError, match=r"\(2, 4\) but the teacher's have shape \(2, 5\)"):
        smooth_l1_distill(torch.zeros(2, 4), torch.zeros(2, 5))


def make_output(**tokens: torch.Tensor | None) -> SimpleNamespace:
    patches = {"prediction": torch.randn(2, 3, 4, 3), "target": torch.randn(2, 3, 4, 3)}
    return SimpleNamespace(**{"image": None, "text": None, "contrast": None, **patches, **tokens})


def test_losses_that_apply_are_summed() -> None:
    output = make_output(
        image=torch.randn(2, 5),
        text=torch.randn(2, 6),
        contrast=torch.nn.functional.normalize(torch.randn(2, 7), dim=-1),
    )
    assert set(pretrain_losses(output)) == {"reconstruction", "loss"}
    losses = pretrain_losses(
        output,
        image_features=torch.randn(2, 5),
        text_features=torch.randn(2, 6),
        labels=torch.tensor([0, 1]),
    )
    parts = ["reconstruction", "image_distill", "text_distill", "self_contrast"]
    assert list(losses) == [*parts, "loss"]
    assert float(losses["loss"]) == pytest.approx(sum(float(losses[part]) for part in parts))


def test_kind_of_chamfer_is_chosen_by_name_and_features_need_a_head() -> None:
    output = make_output()
    for name, squared in (("l1", False), ("l2", True)):
        expected = chamfer(output.prediction, output.target, squared=squared)
        assert torch.equal(pretrain_losses(output, chamfer=name)["reconstruction"], expected)
    with pytest.raises(ValueError, match=r"text features were given .* without text_dim"):
        pretrain_losses(make_output(), text_features=torch.zeros(2, 3))
