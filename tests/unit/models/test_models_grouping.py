from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recon_ray.models.grouping import PatchEmbed, cut_patches


def test_patches_hold_the_center_and_its_nearest_points() -> None:
    points = torch.randn(2, 64, 3)
    patches, centers = cut_patches(points, 8, 4)
    assert patches.shape == (2, 8, 4, 3)
    assert torch.equal(centers[:, 0], points[:, 0])  # sampling starts at index 0
    absolute = patches + centers[:, :, None]
    distance = (centers[:, :, None] - points[:, None]).norm(dim=-1).sort(dim=-1).values[..., :4]
    torch.testing.assert_close((absolute - centers[:, :, None]).norm(dim=-1), distance)
    patches, centers = cut_patches(torch.randn(1, 32, 3).half(), 4, 4)
    assert patches.dtype == centers.dtype == torch.float32


class NaiveEmbed(torch.nn.Module):
    """The embedding as the paper draws it: every layer for every point of every patch."""

    def __init__(self, split: PatchEmbed) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleDict()
        for name in ("fc1", "fc2", "fc3", "fc4"):
            layer = getattr(split, name)
            conv = torch.nn.Conv1d(layer.in_features, layer.out_features, 1).double()
            conv.weight.data = layer.weight.detach().clone()[..., None]
            conv.bias.data = layer.bias.detach().clone()
            self.layers[name] = conv
        for name in ("norm1", "norm2"):
            width = getattr(split, name).num_features
            self.layers[name] = torch.nn.BatchNorm1d(width).double()
            self.layers[name].load_state_dict(getattr(split, name).state_dict())

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        batch, groups, size, _ = patches.shape
        layers = self.layers
        x = patches.reshape(batch * groups, size, 3).transpose(1, 2)
        x = layers["fc2"](F.relu(layers["norm1"](layers["fc1"](x))))
        pooled = x.max(dim=2, keepdim=True).values.expand(-1, -1, size)
        x = torch.cat([pooled, x], dim=1)
        x = layers["fc4"](F.relu(layers["norm2"](layers["fc3"](x))))
        return x.max(dim=2).values.view(batch, groups, -1)


def make_pair() -> tuple[PatchEmbed, NaiveEmbed]:
    torch.manual_seed(0)
    split = PatchEmbed(10, (4, 6, 9)).double()
    for norm in (split.norm1, split.norm2):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    return split, NaiveEmbed(split)


def test_split_embedding_equals_the_naive_one() -> None:
    split, naive = make_pair()
    patches = torch.randn(2, 7, 5, 3, dtype=torch.float64)
    ours = split(patches[:, :3], patches[:, 3:])
    theirs = naive(patches)[:, :3]
    torch.testing.assert_close(ours, theirs)
    ours.sin().sum().backward()
    theirs.sin().sum().backward()
    for name, layer in naive.layers.items():
        own = getattr(split, name)
        torch.testing.assert_close(own.weight.grad, layer.weight.grad.view_as(own.weight))
        torch.testing.assert_close(own.bias.grad, layer.bias.grad)
    for name in ("norm1", "norm2"):
        for key, value in naive.layers[name].state_dict().items():
            torch.testing.assert_close(getattr(split, name).state_dict()[key], value)


@pytest.mark.parametrize("size", [1, 4, 6, 9, 32])
def test_compiled_inference_takes_other_ways_to_the_same(size: int) -> None:
    split, naive = make_pair()
    patches = torch.randn(2, 3, size, 3, dtype=torch.float64)
    split(patches), naive(patches)  # statistics
    torch._dynamo.reset()
    compiled = torch.compile(split.eval(), backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(patches), naive.eval()(patches))


def test_context_changes_statistics_in_training_only_and_order_does_not_matter() -> None:
    split, naive = make_pair()
    patches = torch.randn(2, 7, 5, 3, dtype=torch.float64)
    alone, together = split(patches[:, :3]), split(patches[:, :3], patches[:, 3:])
    assert not torch.allclose(alone, together)
    split.eval()
    assert torch.equal(split(patches[:, :3]), split(patches[:, :3], patches[:, 3:]))
    naive.eval()
    for name in ("norm1", "norm2"):
        naive.layers[name].load_state_dict(getattr(split, name).state_dict())
    torch.testing.assert_close(split(patches), naive(patches))
    torch.testing.assert_close(split(patches), split(patches.flip(2)))
