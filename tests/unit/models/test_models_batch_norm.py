from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recon_ray.models.batch_norm import (
    BatchNorm,
    batch_norms,
    estimate_statistics,
    largest_initial_part,
    set_first_average,
    set_sync_batch_norm,
)


def make_pair(channels: int = 5) -> tuple[BatchNorm, torch.nn.BatchNorm1d]:
    torch.manual_seed(0)
    theirs = torch.nn.BatchNorm1d(channels).double()
    torch.nn.init.normal_(theirs.weight)
    torch.nn.init.normal_(theirs.bias)
    theirs.running_mean.normal_()
    theirs.running_var.uniform_(0.5, 2.0)
    ours = BatchNorm(channels).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_state_dict_is_that_of_torch() -> None:
    ours, theirs = make_pair()
    assert {k: (v.shape, v.dtype) for k, v in ours.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in theirs.state_dict().items()
    }


@pytest.mark.parametrize("training", [True, False])
def test_equals_torch_in_values_gradients_and_statistics(training: bool) -> None:
    ours, theirs = make_pair()
    ours.train(training)
    theirs.train(training)
    x = (3 * torch.randn(4, 6, 5, dtype=torch.float64) + 7).requires_grad_()
    y = x.detach().clone().requires_grad_()
    for _ in range(2):  # twice, so that running statistics are compared as well
        a, b = ours(x), theirs(y.transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(a, b)
    (a * torch.sin(a)).sum().backward()
    (b * torch.sin(b)).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


def test_statistics_of_a_large_mean_are_exact_enough() -> None:
    x = torch.randn(1000, 2) + 1000
    # float32 holds 1000 to 6e-5: that noise is all the difference there may be.
    torch.testing.assert_close(
        BatchNorm(2)(x), torch.nn.BatchNorm1d(2).double()(x.double()).float(), atol=2e-4, rtol=0
    )


def test_kept_entries_use_the_statistics_of_all() -> None:
    ours, theirs = make_pair()
    x = torch.randn(7, 3, 5, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    a = ours(x, keep=2)
    b = theirs(y.reshape(-1, 5)).view(7, 3, 5)[:2]
    torch.testing.assert_close(a, b)
    a.pow(3).sum().backward()
    b.pow(3).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert float(x.grad[2:].abs().min()) > 0  # through the statistics
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_gradients_are_numerically_right() -> None:
    ours, _ = make_pair(2)
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w, b: _with(ours, w, b)(x, 3), (x, *_leaves(ours)))


def _leaves(layer: BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.weight.detach().requires_grad_(), layer.bias.detach().requires_grad_()


def _with(layer: BatchNorm, weight: torch.Tensor, bias: torch.Tensor) -> object:
    parameters = {"weight": weight, "bias": bias}
    return lambda *args: torch.func.functional_call(layer, parameters, args)


def test_half_precision_keeps_its_type_and_float32_statistics() -> None:
    layer = BatchNorm(4)
    assert layer(torch.randn(64, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.running_mean.dtype == torch.float32


def test_a_single_row_is_refused_in_training() -> None:
    with pytest.raises(ValueError, match="more than one row"):
        BatchNorm(4)(torch.zeros(1, 4))
    assert BatchNorm(4).eval()(torch.zeros(1, 4)).shape == (1, 4)


def test_switch_reaches_every_layer() -> None:
    model = torch.nn.Sequential(BatchNorm(3), torch.nn.Sequential(BatchNorm(3)))
    set_sync_batch_norm(model, True)
    assert model[0].sync
    assert model[1][0].sync


def _batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [0.01 * torch.randn(64, 3, generator=generator) + 0.3 for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 10, 13])
def test_the_first_batches_are_averaged_then_a_moving_average_goes_on(count: int) -> None:
    layer = BatchNorm(3)
    set_first_average(layer, True)
    batches = _batches(count)
    for batch in batches:
        layer(batch)
    variances = torch.stack([batch.var(0) for batch in batches])
    mean, var = (
        torch.stack([batch.mean(0) for batch in batches[:10]]).mean(0),
        variances[:10].mean(0),
    )
    for batch in batches[10:]:
        mean, var = 0.9 * mean + 0.1 * batch.mean(0), 0.9 * var + 0.1 * batch.var(0)
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, var)
    assert int(layer.num_batches_tracked) == count


def test_after_one_batch_evaluation_is_training_unless_the_initial_values_are_kept() -> None:
    batch = _batches(1)[0]
    ours, torchs = BatchNorm(3), BatchNorm(3)
    set_first_average(ours, True)
    trained = ours(batch)
    torchs(batch)
    torch.testing.assert_close(ours.eval()(batch), trained, rtol=0.01, atol=0.01)
    assert float((torchs.eval()(batch) - trained).detach().abs().mean()) > 0.5
    assert largest_initial_part(torch.nn.Sequential(torchs)) == ("0", pytest.approx(1, abs=1e-3))


def test_statistics_of_weights_are_not_replaced() -> None:
    pretrained, uncounted = BatchNorm(3), BatchNorm(3)
    pretrained.num_batches_tracked.fill_(5000)
    for layer in (pretrained, uncounted):
        layer.running_mean.fill_(4.0)
        layer.running_var.fill_(2.0)
        set_first_average(layer, True)
        layer(_batches(1)[0])
        torch.testing.assert_close(layer.running_var, torch.full((3,), 1.8), rtol=1e-3, atol=0)
    assert largest_initial_part(pretrained)[1] == 0
    assert largest_initial_part(BatchNorm(3))[1] == 0


@pytest.mark.parametrize(("batches", "initial"), [(40, 0.99), (91, 0.5), (112, 0.1)])
def test_the_part_that_is_initial_is_told(batches: int, initial: float) -> None:
    """Of the variance that the patch embedding sees."""
    layer = BatchNorm(3)
    layer.num_batches_tracked.fill_(batches)
    layer.running_var.fill_(0.9**batches + (1 - 0.9**batches) * 7e-5)
    assert largest_initial_part(layer)[1] == pytest.approx(initial, abs=0.01)


def test_estimated_statistics_are_those_of_what_was_seen_and_can_be_taken_back() -> None:
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Dropout(), BatchNorm(3)), BatchNorm(3))
    seen = []

    def observe() -> None:
        seen.append([module.training for module in model.modules()])
        seen.append(model(_batches(1)[0]))

    model[1].sync = True
    for _ in range(2):  # the second time in place of the first
        estimate_statistics(model, observe)
        assert not any(module.training for module in model.modules())
        torch.testing.assert_close(model(_batches(1)[0]), seen[-1], rtol=0.02, atol=0.05)
    assert (model[1].sync, model[1].averages_first) == (True, False)
    for _, layer in batch_norms(model):
        layer.reset()
        assert all(
            torch.equal(v, BatchNorm(3).state_dict()[k]) for k, v in layer.state_dict().items()
        )


SPLIT = (2, 5)  # rows of the two workers: unequal on purpose


def _inputs() -> torch.Tensor:
    return torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(1)) + 4


def _loss(y: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return (y.pow(3) * rows).sum()


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    layer = BatchNorm(5)
    torch.nn.init.normal_(layer.weight)
    layer.sync = layer.averages_first = True
    part = slice(0, SPLIT[0]) if rank == 0 else slice(SPLIT[0], None)
    x = _inputs()[part].requires_grad_()
    y = layer(x)
    _loss(y, torch.arange(1.0, 8)[part, None, None]).backward()
    result = {"y": y.detach(), "x": x.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}
    result |= {"mean": layer.running_mean, "var": layer.running_var}
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_equal_one(tmp_path: Path) -> None:
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.manual_seed(0)
    layer = BatchNorm(5)
    layer.averages_first = True
    torch.nn.init.normal_(layer.weight)
    x = _inputs().requires_grad_()
    y = layer(x)
    _loss(y, torch.arange(1.0, 8)[:, None, None]).backward()
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([part["y"] for part in parts]), y.detach(), **close)
    torch.testing.assert_close(torch.cat([part["x"] for part in parts]), x.grad, **close)
    for name in ("weight", "bias"):  # local sums: adding them up is the gradient averaging's work
        total = parts[0][name] + parts[1][name]
        torch.testing.assert_close(total, getattr(layer, name).grad, **close)
    for part in parts:
        torch.testing.assert_close(part["mean"], layer.running_mean, **close)
        torch.testing.assert_close(part["var"], layer.running_var, **close)
