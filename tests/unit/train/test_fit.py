"""The loop without Ray: repeatable, exact on resume, and the same for any split of the batch."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.checkpoint import checkpoint

from recon_ray.cluster.train import train_here
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.loading.batches import IndexedTable
from recon_ray.errors import CheckpointError, ConfigError, ReconError
from recon_ray.models.batch_norm import BatchNorm
from recon_ray.runs.checkpoint import CheckpointStore
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.pretrain.job import make_task, training_job
from recon_ray.tasks.pretrain.task import PretrainModule
from recon_ray.tasks.run import open_run, start_run
from recon_ray.train import commits, state
from recon_ray.train.feed.indexed import IndexedFeed
from recon_ray.train.loop import fit
from recon_ray.train.runtime import LocalRuntime

#: Biases that a batch norm takes out again, and the means that follow them: their gradient is
#: rounding noise, which Adam scales up.
TAKEN_OUT = ("fc1.bias", "fc2.bias", "fc3.bias", "norm1.running_mean", "norm2.running_mean")
BEFORE_BATCH_NORM = tuple(f"encoder.embed.{name}" for name in TAKEN_OUT)


def changed(config: PretrainConfig, **sections) -> PretrainConfig:
    """The configuration with other options in some sections."""
    updated = {
        name: getattr(config, name).model_copy(update=options)
        if isinstance(options, dict)
        else options
        for name, options in sections.items()
    }
    return config.model_copy(update=updated)


def pretrain_here(config: PretrainConfig, prepared: PreparedSet) -> tuple[dict[str, float], Path]:
    task = make_task(config, prepared)
    run = start_run("pretrain", config, label="test", resume=config.resume)
    return train_here(training_job(run, config, prepared, task)), run.folder.local


def losses(folder: Path) -> list[float]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["train/loss"] for record in records if "train/loss" in record]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return CheckpointStore(str(folder / "checkpoints")).load_latest().model


def assert_same_weights(first: Path, second: Path, **tolerance: float) -> None:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    for key in a:
        if tolerance and key in BEFORE_BATCH_NORM:
            continue
        torch.testing.assert_close(a[key], b[key], **(tolerance or {"rtol": 0, "atol": 0}), msg=key)


def test_the_loss_falls_and_the_metrics_are_complete(tiny_config, tiny_prepared, caplog):
    caplog.set_level("INFO", logger="recon_ray")
    config = changed(tiny_config, train={"epochs": 12})
    metrics, folder = pretrain_here(config, tiny_prepared)
    lines = [record.getMessage() for record in caplog.records]
    assert any(re.match(r"epoch 12\.0/12 step 36/36 .* left 0:00:00$", line) for line in lines)
    assert metrics["loss_last"] < 0.67 * metrics["loss_first"]
    assert metrics["steps"] == 12 * 3
    assert {"probe_before", "probe_after", "zeroshot_before", "zeroshot_accuracy"} <= metrics.keys()
    assert metrics["chance"] == pytest.approx(1 / 3)
    assert len(losses(folder)) == 36


def test_a_run_in_half_precision_learns_and_is_evaluated(tiny_config, tiny_prepared):
    config = changed(tiny_config, runtime={"precision": "bf16"}, train={"epochs": 12})
    metrics, folder = pretrain_here(config, tiny_prepared)
    assert metrics["loss_last"] < 0.67 * metrics["loss_first"]
    assert {"probe_after", "zeroshot_accuracy", "probe_full_after"} <= metrics.keys()
    assert all(value.dtype != torch.bfloat16 for value in weights(folder).values())


@pytest.fixture(scope="module")
def one(tiny_config_in, tiny_prepared, tmp_path_factory) -> tuple[dict[str, float], Path]:
    """Metrics and folder of the tiny run, in this process and without interruption."""
    return pretrain_here(tiny_config_in(tmp_path_factory.mktemp("one")), tiny_prepared)


@pytest.fixture
def whole(one) -> Path:
    """Folder of that run."""
    return one[1]


def test_the_same_seed_gives_the_same_curve_another_seed_another(tiny_config, tiny_prepared, whole):
    _, again = pretrain_here(changed(tiny_config, run={"name": "b"}), tiny_prepared)
    _, other = pretrain_here(changed(tiny_config, run={"name": "c", "seed": 4}), tiny_prepared)
    assert losses(whole) == losses(again)
    assert_same_weights(whole, again)
    assert losses(whole) != losses(other)


@pytest.mark.parametrize("stop_after", [1, 3, 7])
def test_a_continued_run_equals_the_whole_run(tiny_config, tiny_prepared, whole, stop_after):
    part = changed(tiny_config, run={"name": "part"}, train={"steps": stop_after})
    pretrain_here(part, tiny_prepared)
    metrics, continued = pretrain_here(changed(part, train={"steps": None}), tiny_prepared)
    assert metrics["steps"] == 12
    assert losses(continued) == losses(whole)
    assert_same_weights(continued, whole)


@pytest.fixture
def _frozen_batch_norm(monkeypatch):
    original = BatchNorm.train
    monkeypatch.setattr(BatchNorm, "train", lambda self, mode=True: original(self, False))


@pytest.mark.usefixtures("_frozen_batch_norm")  # it sees one micro batch at a time otherwise
def test_accumulated_micro_batches_give_the_gradient_of_the_whole(tiny_config, tiny_prepared):
    whole_config = changed(tiny_config, run={"name": "whole"})
    parts_config = changed(tiny_config, run={"name": "parts"}, train={"micro_batch_size": 3})
    _, whole = pretrain_here(whole_config, tiny_prepared)
    _, parts = pretrain_here(parts_config, tiny_prepared)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)


class _GlooRuntime(LocalRuntime):
    """A worker of several, without Ray."""

    def __init__(self, rank: int, world_size: int, **arguments) -> None:
        super().__init__(**arguments)
        self.rank, self.world_size = rank, world_size


#: Micro batches, and to each worker its own batch-norm statistics, of which rank 0's are kept.
LOCAL = {"sync_batch_norm": False, "micro_batch_size": 2}
#: What is changed in the runs of two workers.
OF_TWO = {
    "plain": {},
    "half": {"train": {"gradient_precision": "bf16", "bucket_megabytes": 0.05}},
    "flat": {"train": {"gradient_exchange": "flat"}},
    "local": {"train": LOCAL},
    "local-flat": {"train": {**LOCAL, "gradient_exchange": "flat"}},
    "again": {"model": {"kind": "twotower"}, "train": {"activation_checkpointing": True}},
}
#: The same, of compiled steps.
COMPILED_OF_TWO = {
    "compiled": {},
    "compiled-flat": {"train": {"gradient_exchange": "flat"}},
    "compiled-local": OF_TWO["local"],
    "compiled-again": {"train": {"activation_checkpointing": True}},
}


@pytest.fixture(scope="module")
def of_two(tiny_config_in, tmp_path_factory) -> Path:
    """The folder with the runs of two workers, one after the other in the same two processes."""
    folder = tmp_path_factory.mktemp("two")
    config = tiny_config_in(folder)
    configs = [
        changed(config, run={"name": name}, eval={"enabled": name == "plain"}, **changes)
        for name, changes in OF_TWO.items()
    ]
    mp.start_processes(_worker, (2, configs), nprocs=2, start_method="spawn")
    return folder


def _worker(rank: int, world_size: int, configs: list[PretrainConfig]) -> None:
    torch.set_num_threads(1)
    for config in configs:
        torch._dynamo.reset()  # or the model of the run before would be compiled for this one too
        meet = f"file://{config.run.storage}/{config.run.name}.rendezvous"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
        _train(rank, world_size, config)
        dist.destroy_process_group()


def _train(rank: int, world_size: int, config: PretrainConfig) -> None:
    prepared = PreparedSet.open(config.data.path)
    task = make_task(config, prepared)
    run = open_run("pretrain", config, label="test", resume="auto")
    run.folder.local.mkdir(parents=True, exist_ok=True)
    job = training_job(run, config, prepared, task)
    columns = list(job.options.columns)
    train = prepared.read("train", columns=columns, views=True)
    tables = {
        "train": IndexedTable([train.select(columns)], [train.select(["sample_id", "views"])]),
        "test": IndexedTable([prepared.read("test", columns=columns)]),
    }
    feed = IndexedFeed(tables["train"], job.options, seed=config.run.seed)
    data = {"folder": run.folder, "tables": tables, "train_feed": feed}
    runtime = _GlooRuntime(rank, world_size, **data, device=torch.device("cpu"))
    metrics = fit(job.make_task(), runtime, job.settings)
    if rank == 0:
        run.folder.write("metrics.json", json.dumps(metrics))


def test_two_workers_compute_the_same_function_as_one(one, of_two):
    alone, whole = one
    several = of_two / "plain"
    together = json.loads((several / "metrics.json").read_text())
    # sums over workers round differently; batch-norm statistics are synchronized
    assert losses(several) == pytest.approx(losses(whole), rel=1e-4)
    assert_same_weights(several, whole, rtol=1e-3, atol=1e-5)
    assert together["zeroshot_before"] == alone["zeroshot_before"]
    assert together["probe_full_before"] == pytest.approx(alone["probe_full_before"], abs=0.09)


@pytest.mark.long
def test_two_workers_compute_the_same_compiled(tiny_config, whole, of_two, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    Path(tiny_config.run.storage).mkdir()
    config = changed(tiny_config, eval={"enabled": False}, runtime={"compile": "default"})
    for start in ("cold", "cached"):
        configs = [
            changed(config, run={"name": f"{name}-{start}"}, **changes)
            for name, changes in COMPILED_OF_TWO.items()
        ]
        mp.start_processes(_worker, (2, configs), nprocs=2, start_method="spawn")
        for one in configs:
            expected = of_two / "local" if "local" in one.run.name else whole
            found = losses(Path(one.run.storage) / one.run.name)
            assert found == pytest.approx(losses(expected), rel=1e-3), one.run.name


def test_workers_are_told_that_all_checkpoints_are_damaged(tiny_config, tiny_prepared, monkeypatch):
    config = changed(tiny_config, train={"steps": 1}, eval={"enabled": False})
    _, folder = pretrain_here(config, tiny_prepared)
    (folder / "checkpoints" / "step-00000001" / "model.pt").write_bytes(b"half of it")
    messages = []
    for module in (state, commits):
        monkeypatch.setattr(module, "is_distributed", lambda: True)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box, src: messages.append(*box))
    store = CheckpointStore(str(folder / "checkpoints"))
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        state.newest_checkpoint(store, rank=0)
    assert len(messages) == 1
    assert "all 1 checkpoints are damaged" in messages[0]


def test_gradients_exchanged_in_half_precision_or_all_at_once_give_the_same_training(whole, of_two):
    half = losses(of_two / "half")
    assert half == pytest.approx(losses(whole), rel=0.03)
    assert half != pytest.approx(losses(whole), rel=1e-5)
    assert losses(of_two / "flat") == pytest.approx(losses(whole), rel=1e-4)
    local = losses(of_two / "local")
    assert losses(of_two / "local-flat") == pytest.approx(local, rel=1e-4)
    assert local != pytest.approx(losses(whole), rel=1e-4)


def test_activations_computed_again_give_the_same_training(tiny_config, tiny_prepared, monkeypatch):
    calls = []

    def counted(part, *arguments, **options):
        calls.append(part)
        return checkpoint(part, *arguments, **options)

    config = changed(
        tiny_config,
        model={"kind": "twotower"},
        train={"micro_batch_size": 3, "epochs": 2},
        eval={"enabled": False},
    )
    _, plain = pretrain_here(changed(config, run={"name": "plain"}), tiny_prepared)
    again = {"activation_checkpointing": True}
    monkeypatch.setattr("recon_ray.models.transformer.checkpoint", counted)
    _, other = pretrain_here(changed(config, run={"name": "again"}, train=again), tiny_prepared)
    assert losses(other) == losses(plain)
    assert_same_weights(other, plain)
    # 6 steps of 3 micro batches: two embeddings, two towers of two blocks, a decoder of one.
    assert len(calls) == 6 * 3 * (2 + 4 + 1)


def test_two_workers_agree_on_statistics_computed_again(tiny_config, tiny_prepared, of_two):
    config = changed(tiny_config, model={"kind": "twotower"}, eval={"enabled": False})
    _, one = pretrain_here(config, tiny_prepared)
    assert losses(of_two / "again") == pytest.approx(losses(one), rel=1e-4)


def test_the_reference_protocol_trains_an_epoch_more_at_the_first_rate(tiny_config, tiny_prepared):
    config = changed(tiny_config, protocol="reference", eval={"enabled": False})
    metrics, folder = pretrain_here(config, tiny_prepared)
    records = list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    assert metrics["epochs"] == tiny_config.train.epochs + 1
    rates = {record["epoch"]: record["train/lr"] for record in records}
    assert rates[0] == rates[1] == pytest.approx(1e-6)
    assert rates[2] > 1e-5


def test_the_evaluation_before_changes_nothing_in_the_training(tiny_config, tiny_prepared, whole):
    _, folder = pretrain_here(changed(tiny_config, eval={"enabled": False}), tiny_prepared)
    assert losses(folder) == losses(whole)
    assert_same_weights(folder, whole)


def test_a_short_run_keeps_no_initial_statistics_or_says_so(tiny_config, tiny_prepared, caplog):
    short = {"train": {"steps": 4, "micro_batch_size": 4}, "eval": {"enabled": False}}
    state = {}
    for protocol in ("sound", "reference"):
        config = changed(tiny_config, run={"name": protocol}, protocol=protocol, **short)
        _, folder = pretrain_here(config, tiny_prepared)
        state[protocol] = weights(folder)
        assert ("initial value 1" in caplog.text) == (protocol == "reference")
    for name, tracked in state["sound"].items():
        if name.endswith("num_batches_tracked"):
            norm = name.removesuffix("num_batches_tracked")
            sound, reference = (state[key][f"{norm}running_var"] for key in state)
            tracked = int(tracked)
            assert tracked == int(state["reference"][name]) == 8
            # The weights differ little after four steps: so do the batches' variances.
            found = (reference - 0.9**tracked) / (1 - 0.9**tracked)
            torch.testing.assert_close(sound.median(), found.median(), rtol=0.1, atol=1e-6)


def test_clipping_changes_the_steps(tiny_config, tiny_prepared, whole):
    _, clipped = pretrain_here(changed(tiny_config, train={"clip_norm": 1e-3}), tiny_prepared)
    assert losses(whole)[0] == losses(clipped)[0]
    assert losses(whole)[-1] != losses(clipped)[-1]


def test_a_loss_that_is_not_finite_ends_the_run_by_name(tiny_config, tiny_prepared, monkeypatch):
    original = PretrainModule.forward

    def poisoned(self, batch, source):
        losses = original(self, batch, source)
        return {**losses, "text_distill": losses["text_distill"] * float("nan")}

    _, folder = pretrain_here(changed(tiny_config, train={"steps": 2}), tiny_prepared)
    monkeypatch.setattr(PretrainModule, "forward", poisoned)
    refused = r"the loss is not finite \(text_distill\); begin another run with a lower optim.lr, "
    with pytest.raises(ReconError, match=refused) as caught:
        pretrain_here(changed(tiny_config, resume="auto"), tiny_prepared)
    monkeypatch.undo()
    resume = str(caught.value).partition(" resume=")[2]
    assert Path(resume) == folder / "checkpoints" / "step-00000002"
    # What it says can be done: options that a continued run may not change.
    optim, name = {"lr": 1e-4}, {"name": "again"}
    again = changed(tiny_config, run=name, resume=resume, optim=optim, train={"steps": 3})
    assert pretrain_here(again, tiny_prepared)[0]["steps"] == 3


def test_fewer_samples_than_a_global_batch_are_refused(tiny_config, tiny_prepared):
    config = changed(tiny_config, train={"global_batch_size": 25})
    with pytest.raises(ConfigError, match="'train' has only 24 samples"):
        pretrain_here(config, tiny_prepared)


def test_a_run_starts_from_the_checkpoint_of_another_of_the_same_width(tiny_config, tiny_prepared):
    pretrain_here(changed(tiny_config, train={"steps": 5}), tiny_prepared)
    folder = Path(tiny_config.run.storage) / "run"
    checkpoint = folder / "checkpoints" / "step-00000005"
    config = changed(tiny_config, run={"name": "branch"}, resume=str(checkpoint))
    metrics, branch = pretrain_here(config, tiny_prepared)
    assert metrics["steps"] == 12
    assert len(losses(branch)) == 7
    config = changed(
        tiny_config, run={"name": "wider"}, resume=str(checkpoint), model={"embed_dim": 32}
    )
    with pytest.raises(CheckpointError, match=r"has shape .*24.*configured model has .*32"):
        pretrain_here(config, tiny_prepared)
