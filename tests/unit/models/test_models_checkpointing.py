"""Activation checkpointing changes the memory of a step and nothing else."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from recon_ray.benchmarks.memory import TensorPeak
from recon_ray.models.classifier import Classifier
from recon_ray.models.cloud import CloudModel, set_activation_checkpointing
from recon_ray.models.decoder import ReconOutput
from recon_ray.models.grouping import PatchEmbed
from recon_ray.models.partseg import PartSegmenter
from recon_ray.models.recon import Recon
from recon_ray.models.twotower import TwoTower, TwoTowerClassifier
from recon_ray.points.random import SampleGenerator
from recon_ray.train.step.half_weights import HalfWeights

SIZES = {
    "embed_dim": 24, "depth": 3, "num_heads": 3, "num_groups": 8, "group_size": 6,
    "patch_widths": (8, 12, 16), "drop_path": 0.3,
}  # fmt: skip
TEACHERS = {"decoder_depth": 2, "image_dim": 10, "text_dim": 12}
SMALL_HEAD = {"propagation_widths": (16, 16), "head_widths": (8, 8)}
MODELS: dict[str, tuple[type[CloudModel], dict[str, Any]]] = {
    "recon": (Recon, TEACHERS),
    "twotower": (TwoTower, TEACHERS),
    "classifier": (Classifier, {"num_classes": 3}),
    "twotower_classifier": (TwoTowerClassifier, {"num_classes": 3}),
    "partseg": (PartSegmenter, {"num_parts": 5, "num_categories": 3, **SMALL_HEAD}),
}


def made(kind: str, *, checkpointing: bool, **sizes: Any) -> Loss:
    """A model in training with its loss."""
    torch.manual_seed(0)
    model, more = MODELS[kind]
    module = Loss(model(**{**SIZES, **more, **sizes})).train()
    set_activation_checkpointing(module, checkpointing)
    return module


class Loss(nn.Module):
    """A model and some loss of everything that it gives."""

    def __init__(self, model: CloudModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, points: Tensor, ids: Tensor) -> Tensor:
        source = SampleGenerator(0, ids, 0, stream=1)
        if isinstance(self.model, PartSegmenter):
            return self.model(points, ids % 3, source).square().mean()
        output = self.model(points, source=source)
        if not isinstance(output, ReconOutput):
            return output.square().mean()
        return sum(part.square().mean() for part in (output.prediction, output.image, output.text))


class Found(NamedTuple):
    loss: Tensor
    gradients: dict[str, Tensor | None]
    state: dict[str, Tensor]


def found(module: Loss, precision: str, backend: str = "") -> Found:
    """One forward and backward pass."""
    torch._dynamo.reset()
    half = HalfWeights(module) if backend and precision == "bf16" else None
    call = half or module
    if backend:
        call = torch.compile(call, backend=backend, fullgraph=True, dynamic=False)
    points = torch.randn(4, 64, 3, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = call(points, torch.arange(4))
    loss.backward()
    if half is not None:
        half.take_gradients()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return Found(loss.detach(), gradients, dict(module.model.state_dict()))


def assert_same(one: Found, other: Found) -> None:
    """Bit by bit: what is computed again is computed in the same way."""
    assert torch.equal(one.loss, other.loss)
    for name, gradient in one.gradients.items():
        if gradient is None:
            assert other.gradients[name] is None, name
        else:
            assert torch.equal(gradient, other.gradients[name]), name
    assert list(one.state) == list(other.state)
    for name, value in one.state.items():  # running statistics and their counts among them
        assert torch.equal(value, other.state[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", MODELS)
def test_loss_gradients_and_statistics_are_the_same(kind: str, precision: str) -> None:
    plain, again = (found(made(kind, checkpointing=on), precision) for on in (False, True))
    assert any(gradient is not None for gradient in plain.gradients.values())
    tracked = [name for name in plain.state if name.endswith("num_batches_tracked")]
    assert {int(plain.state[name]) for name in tracked} == {1}
    assert_same(plain, again)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["recon", "twotower", "partseg"])
def test_compiled_as_one_graph_it_is_the_same(kind: str) -> None:
    """With half-precision copies of the weights, as compiled steps have them."""
    plain, again = (
        found(made(kind, checkpointing=on, depth=1), "bf16", backend="aot_eager")
        for on in (False, True)
    )
    assert_same(plain, again)


def bytes_of_a_step(kind: str, *, checkpointing: bool) -> tuple[int, int]:
    """What is kept for the backward pass, and the most that there is in the step."""
    sizes = {"num_groups": 32, "group_size": 4, "patch_widths": (4, 6, 8)}
    module = made(kind, checkpointing=checkpointing, **sizes)
    with TensorPeak() as tensors:
        loss = module(torch.randn(8, 64, 3), torch.arange(8))
        kept = tensors.bytes
        loss.backward()
    return kept, tensors.peak


@pytest.mark.parametrize("kind", MODELS)
def test_less_is_kept_for_the_backward_pass(kind: str) -> None:
    kept, peak = bytes_of_a_step(kind, checkpointing=False)
    kept_again, peak_again = bytes_of_a_step(kind, checkpointing=True)
    assert kept_again < 0.5 * kept
    assert peak_again < 0.7 * peak


def test_the_embeddings_backward_pass_makes_no_copies_of_its_gradients() -> None:
    """At its peak there are what was kept and, of the widest layer, the gradient and two more."""
    embed = PatchEmbed(8, (4, 8, 128)).train()
    widest = 4 * (4 * 32 * 16) * 128  # bytes of (B V, K, 128) float32
    patches = torch.randn(4, 32, 16, 3)
    with TensorPeak() as tensors:
        x = embed(patches)
        kept = tensors.bytes
        x.sum().backward()
    assert tensors.peak < kept + 2.5 * widest
    assert tensors.peak > kept + widest  # it was seen at all


def test_without_gradient_nothing_is_kept_for_it() -> None:
    module = made("twotower", checkpointing=True)
    with torch.no_grad():
        assert module(torch.randn(4, 64, 3), torch.arange(4)).grad_fn is None
