"""One step in all its ways is the same: from the device, in half precision, compiled, captured."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import pyarrow as pa
import pytest
import torch
from settings_samples import make_settings
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from recon_ray.benchmarks.step import endless
from recon_ray.benchmarks.step_workloads import random_table
from recon_ray.cluster import train
from recon_ray.config.sections.common import RuntimeSection
from recon_ray.data.format.schema import tensor_column
from recon_ray.data.loading.batches import Batch, BatchOptions, IndexedTable
from recon_ray.errors import ConfigError
from recon_ray.models.heads import ClassHead
from recon_ray.models.recon import Embedder
from recon_ray.points import ops
from recon_ray.points.random import SampleGenerator
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.pretrain.job import make_task, training_job
from recon_ray.tasks.pretrain.task import PretrainTask
from recon_ray.tasks.run import open_run
from recon_ray.train.feed.batching import BatchPlan
from recon_ray.train.feed.indexed import IndexedFeed
from recon_ray.train.feed.resident import ResidentFeed, indexed_feed
from recon_ray.train.inference import Inference
from recon_ray.train.loop import take_step
from recon_ray.train.metrics import Mean
from recon_ray.train.optim import load_optimizer, stored_optimizer
from recon_ray.train.step.half_weights import HalfWeights
from recon_ray.train.step.one_step import Step, wants_graph
from recon_ray.train.step.step_timer import Lap, StepClock

CPU = torch.device("cpu")
SIZES = {
    "preset": "nano", "embed_dim": 32, "depth": 1, "num_heads": 2, "decoder_depth": 1,
    "num_groups": 8, "group_size": 8, "drop_path": 0.2,
}  # fmt: skip
ENCODER = {name: SIZES[name] for name in SIZES if name not in ("preset", "decoder_depth")}
EAGER = {"precision": "fp32", "compile": "off", "cuda_graph": "off"}


def pretraining() -> PretrainTask:
    teacher = {"image": {"name": None}, "text": {"name": "descriptor:16"}}
    config = PretrainConfig(model=SIZES, data={"num_points": 48}, teacher=teacher)
    return PretrainTask(config, texts=["a", "b", "c"], num_classes=3)


def made_step(
    device: torch.device = CPU, residency: str = "host", **settings
) -> tuple[Step, nn.Module, Iterator[Batch]]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    task = pretraining()
    options = make_settings(epochs=1, global_batch_size=8, **{**EAGER, **settings})
    module = task.build().to(device)
    task.on_device(device)
    optimizer = torch.optim.AdamW(
        task.parameter_groups(module), fused=True, capturable=wants_graph(options, device)
    )
    feed = indexed_feed(
        random_table(32, 64, 3), task.batch_options(), seed=0, residency=residency, device=device
    )
    plan = BatchPlan(8, 1, options.config.train.micro_batch_size)
    where = {"device": device, "rank": 0}
    step = Step(take_step, task, module, optimizer, settings=options, plan=plan, feed=feed, **where)
    return step, module, endless(feed, plan, device)


def taken_steps(
    count: int, device: torch.device = CPU, residency: str = "host", lr: float = 1e-3, **settings
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of every step, and the weights after the last."""
    step, module, batches = made_step(device, residency, **settings)
    losses = []
    for number in range(count):
        step(next(batches), epoch=number // 4, step=number, lr=[lr] * 3)
        losses.append(step.meter.read().means()["loss"])
    batches.close()
    return losses, {name: value.cpu() for name, value in module.state_dict().items()}


# -- Rows on the device --------------------------------------------------------------------------
def feature_table(rows: int) -> pa.Table:
    features = torch.randn(rows, 3, 5).half()
    features[::2, 1] = 0  # filled up by the source
    return pa.table({"sample_id": range(rows), "text_features": tensor_column(features.numpy())})


@pytest.mark.parametrize("draw", ["copy", "view", "row"])
def test_rows_on_the_device_make_the_batches_of_rows_in_memory(draw):
    rows, plan = 23, BatchPlan(8, 2)
    points = torch.randn(rows, 6, 3).half().numpy()
    geometry = {
        "sample_id": range(100, 100 + rows),
        "label": pa.array([i % 3 for i in range(rows)]),
    }
    captions = [f"number {i % 4}" for i in range(rows)]
    table = pa.table({**geometry, "points": tensor_column(points), "caption": captions})
    features = feature_table(rows).set_column(0, "sample_id", table["sample_id"])
    indexed = IndexedTable([table.slice(0, 9), table.slice(9)], None, [[features]])
    options = BatchOptions(
        seed=5, text="caption", captions=sorted(set(captions)), features={"text_features": draw}
    )
    host = IndexedFeed(indexed, options, seed=1)
    device = ResidentFeed(indexed, options, seed=1, device=CPU)
    for epoch in (0, 3):
        for rank in (0, 1):
            mine = list(host.epoch(epoch, 1, plan, rank))
            theirs = [device.gather_on_device(one) for one in device.epoch(epoch, 1, plan, rank)]
            assert len(mine) == len(theirs) == 1
            assert mine[0].keys() == theirs[0].keys()
            for name, value in mine[0].items():
                assert torch.equal(value, theirs[0][name]), name
                assert value.dtype == theirs[0][name].dtype, name


def test_training_from_the_device_is_the_same_training():
    losses, weights = taken_steps(6)
    again, resident = taken_steps(6, residency="device")
    assert losses == again
    assert all(torch.equal(weights[name], resident[name]) for name in weights)


def test_pictures_cannot_stay_on_the_device(tiny_prepared):
    options = BatchOptions(images=object())
    with pytest.raises(ConfigError, match=r"data.residency=device: pictures are decoded"):
        indexed_feed(random_table(4, 8, 2), options, seed=0, residency="device", device=CPU)


# -- Half-precision weights ----------------------------------------------------------------------
def test_copied_weights_compute_what_autocast_does():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 8))
    half = copy.deepcopy(plain)
    copies = HalfWeights(half)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (plain, half)]
    for _ in range(3):
        copies.refresh()
        for part in torch.randn(2, 5, 16):  # two micro batches
            with torch.autocast("cpu", dtype=torch.bfloat16):
                first, second = plain(part).square().mean(), copies(part).square().mean()
            assert torch.equal(first, second)
            first.backward()
            second.backward()
            copies.take_gradients()
        for a, b in zip(plain.parameters(), half.parameters(), strict=True):
            assert b.grad is not None
            assert b.grad.dtype == torch.float32
            assert torch.equal(a.grad, b.grad)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_frozen_weights_get_no_gradient_through_their_copies():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    copies = HalfWeights(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        copies(torch.randn(3, 4)).sum().backward()
    copies.take_gradients()
    assert model[0].weight.grad is None
    assert model[1].weight.grad.dtype == torch.float32


# -- What a captured step is made of ---------------------------------------------------------------
def test_an_epoch_in_a_tensor_gives_the_same_random_numbers():
    ids = torch.tensor([3, 1 << 40, 7])
    for epoch in (0, 1, 299):
        plain = SampleGenerator(11, ids, epoch, stream=1)
        tensor = SampleGenerator(11, ids, torch.tensor(epoch), stream=1)
        assert torch.equal(plain.uniform(4, 2), tensor.uniform(4, 2))
        assert torch.equal(plain.permutation(9), tensor.permutation(9))


def test_means_are_weighted_and_begin_again_after_a_reading():
    meter = Mean()
    meter.update({"loss": torch.tensor(1.0)}, weight=3)
    meter.update({"loss": torch.tensor(5.0)}, weight=1)
    assert meter.read().means() == {"loss": 2.0}
    meter.update({"loss": torch.tensor(7.0)}, weight=2)
    assert meter.read().means() == {"loss": 7.0}
    with pytest.raises(RuntimeError, match="nothing to read"):
        Mean().read()


def test_an_optimizer_continues_with_its_moments_and_our_options():
    def stepped(steps: int, **options) -> torch.optim.AdamW:
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([parameter], fused=True, **options)
        for _ in range(steps):
            parameter.grad = torch.full((3,), 0.5)
            optimizer.step()
        return optimizer

    stored = stepped(4, lr=torch.tensor(0.1), weight_decay=0.3)
    state = stored_optimizer(stored)
    assert type(state["param_groups"][0]["lr"]) is float
    ours = stepped(0, lr=0.02, weight_decay=0.1)
    load_optimizer(ours, state)
    assert ours.param_groups[0]["lr"] == 0.02
    assert ours.param_groups[0]["weight_decay"] == 0.1
    (mine,), (theirs,) = ours.state.values(), stored.state.values()
    assert torch.equal(mine["exp_avg"], theirs["exp_avg"])
    assert float(mine["step"]) == 4


def test_waiting_counts_and_pauses_do_not():
    began, clock = time.monotonic(), StepClock(CPU)

    def slow():
        for _ in range(2):
            time.sleep(0.05)
            yield {}

    for _ in clock.waiting(slow()):
        clock.stepped()
    with clock.paused():
        time.sleep(0.1)
    lap = clock.lap()
    in_all = time.monotonic() - began
    assert lap.steps == 2
    assert 0.1 <= lap.waited <= lap.seconds <= in_all - 0.1
    assert clock.lap().steps == 0


def test_a_lap_and_the_sums_of_a_meter_go_on_from_where_they_were_stored():
    clock, meter = StepClock(CPU), Mean()
    clock.restore(Lap(100.0, 7.0, 5))
    with clock.paused():
        time.sleep(0.05)
        peeked = clock.lap(begin_again=False)
    assert peeked.seconds == pytest.approx(100.0, abs=0.04)
    assert (peeked.waited, peeked.steps) == (7.0, 5)
    assert meter.stored() == {}
    meter.update({"loss": torch.tensor(1.0), "part": torch.tensor(3.0)}, weight=3)
    again = Mean()
    again.restore(meter.stored(), CPU, rank=0)
    for one in (meter, again):
        one.update({"loss": torch.tensor(5.0), "part": torch.tensor(1.0)}, weight=1)
        assert one.read(begin_again=False).means() == {"loss": 2.0, "part": 2.5}
        assert one.read().means() == {"loss": 2.0, "part": 2.5}
    other = Mean()
    other.restore(meter.stored(), CPU, rank=1)  # the first worker has them
    assert [*other.stored().values()] == [0.0, 0.0, 0.0]


# -- Inference -------------------------------------------------------------------------------------
def test_evaluations_between_two_steps_are_captured_only_where_steps_may_be(
    tiny_config, tiny_prepared, monkeypatch
):
    found = []
    monkeypatch.setattr(train, "fit", lambda task, runtime, settings: found.append(runtime) or {})
    for option in ("auto", "off"):
        runtime = RuntimeSection(cuda_graph=option, compile="default", precision="bf16", threads=1)
        config = tiny_config.model_copy(update={"runtime": runtime})
        run = open_run("pretrain", config, label="x")
        task = make_task(config, tiny_prepared)
        train.train_here(training_job(run, config, tiny_prepared, task))
    captured, plain = (runtime.inference for runtime in found)
    assert captured == Inference("bf16", cuda_graph=True)
    assert plain == Inference("bf16", cuda_graph=False)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_prepared_functions_compute_the_same_for_whole_and_incomplete_batches(device, precision):
    place = torch.device(device)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.GELU(), nn.Linear(64, 3)).to(place).eval()
    prepared = Inference(precision).prepare(lambda x, k: {"y": model(x) + k}, place)
    tolerance = (
        {"rtol": 1e-6, "atol": 1e-6} if precision == "fp32" else {"rtol": 0.05, "atol": 0.05}
    )
    kept = []
    with torch.inference_mode():
        for number, size in enumerate((8, 8, 8, 8, 5)):
            x = torch.randn(size, 6, device=place)
            k = torch.tensor(float(number), device=place)
            kept.append((prepared(x, k)["y"], model(x) + k))
    for found, expected in kept:  # later calls have not overwritten earlier results
        assert found.dtype == torch.float32  # what comes after knows no half precision
        torch.testing.assert_close(found, expected, **tolerance)


def test_a_placed_model_computes_what_autocast_computes():
    model = Embedder(**ENCODER, image_dim=4).train()
    how, place = Inference("bf16"), torch.device("cpu")
    points, found = torch.randn(3, 64, 3), []
    with torch.inference_mode():
        placed = how.place(model, place)
        for one in (model.eval(), placed):
            encode = how.prepare(lambda points, one=one: {"f": one.encode_image(points)}, place)
            found.append(encode(points)["f"])
    assert torch.equal(*found)
    assert placed.encoder.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16  # rounded once
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert Inference("fp32").place(model, place) is model


def test_looking_for_the_compiled_operations_does_not_compile_a_model_twice(monkeypatch):
    monkeypatch.setattr(ops, "_found", {})
    model, counter = Embedder(**ENCODER).eval(), CompileCounter()
    torch._dynamo.reset()
    encode = torch.compile(model.svm_features, backend=counter)
    for _ in range(2):
        encode(torch.randn(2, 64, 3))
    assert counter.frame_count == 1


# -- Whole steps -----------------------------------------------------------------------------------
@pytest.mark.long
def test_compiled_steps_are_the_eager_steps():
    eager, weights = taken_steps(12)
    compiled, others = taken_steps(12, compile="default")
    assert compiled == pytest.approx(eager, rel=1e-4)
    for name, value in weights.items():
        if value.is_floating_point() and "running_mean" not in name and ".bias" not in name:
            torch.testing.assert_close(others[name], value, rtol=2e-2, atol=2e-3, msg=name)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "way",
    [
        {"cuda_graph": "auto"},
        {"compile": "default"},
        {"compile": "default", "cuda_graph": "auto", "residency": "device"},
        {"cuda_graph": "auto", "micro_batch_size": 3},
        {"cuda_graph": "auto", "clip_norm": 0.1, "double_step": True},
    ],
    ids=["graph", "compile", "compile-graph-device", "graph-micro", "graph-clip"],
)
def test_200_steps_on_the_gpu_are_the_plain_eager_steps(way):
    device = torch.device("cuda")
    plain = {
        key: way[key] for key in ("micro_batch_size", "clip_norm", "double_step") if key in way
    }
    eager, _ = taken_steps(200, device, **plain)
    fast, _ = taken_steps(200, device, **way)
    assert fast[:20] == pytest.approx(eager[:20], rel=1e-3)
    mean = sum(eager[-50:]) / 50
    assert sum(fast[-50:]) / 50 == pytest.approx(mean, rel=0.02)


@pytest.mark.cuda
@pytest.mark.parametrize("residency", ["host", "device"])
@pytest.mark.parametrize(
    "way", [{"cuda_graph": "auto"}, {"compile": "default"}], ids=["graph", "compile"]
)
def test_the_host_does_not_wait_for_the_gpu_in_a_step(way, residency):
    step, _, batches = made_step(torch.device("cuda"), residency, precision="bf16", **way)
    for number in range(6):  # compiles and captures
        step(next(batches), epoch=0, step=number, lr=[1e-3] * 3)
    ready = [next(batches) for _ in range(6)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number, batch in enumerate(ready):
            step(batch, epoch=number // 4, step=6 + number, lr=[1e-3 / (number + 1)] * 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    batches.close()


@pytest.mark.cuda
def test_half_precision_as_one_compiled_graph_learns_like_float32():
    device = torch.device("cuda")
    eager, _ = taken_steps(200, device)
    way = {"precision": "bf16", "compile": "default", "cuda_graph": "auto"}
    fast, weights = taken_steps(200, device, residency="device", **way)
    assert all(value.isfinite().all() for value in weights.values())
    assert sum(fast[-50:]) / 50 == pytest.approx(sum(eager[-50:]) / 50, rel=0.03)


@pytest.mark.cuda
def test_a_captured_step_draws_new_numbers_each_time_and_the_same_ones_again():
    device = torch.device("cuda")
    frozen = {"cuda_graph": "auto", "lr": 0.0}
    first, _ = taken_steps(24, device, **frozen)
    again, _ = taken_steps(24, device, **frozen)
    assert first == again
    # Epochs 4 steps long: with weights that stay, only masks and augmentation tell them apart.
    assert len({round(value, 6) for value in first}) > 20
    eager, _ = taken_steps(24, device, lr=0.0)
    assert first == pytest.approx(eager, rel=1e-4)


@pytest.mark.cuda
def test_units_are_dropped_anew_in_every_replay():
    head = ClassHead(8, 3, "mlp", dropout=0.5).cuda().train()
    x, ids = torch.randn(4, 8, device="cuda"), torch.arange(4, device="cuda")
    epoch, out = torch.zeros((), dtype=torch.int64, device="cuda"), []
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        head(x, SampleGenerator(0, ids, epoch))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = head(x, SampleGenerator(0, ids, epoch))
    for number in (0, 1, 0):
        epoch.fill_(number)
        graph.replay()
        out.append(y.clone())
    assert not torch.allclose(out[0], out[1])
    assert torch.allclose(out[0], out[2])
