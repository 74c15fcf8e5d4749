"""The loop without Ray: repeatable, exact on resume, and the same for any split of the batch."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.checkpoint import checkpoint

from recon_ray.cluster.train import train_here
from recon_ray.config.sections.training import TeacherSection, TrainingConfig
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.loading.batches import IndexedTable
from recon_ray.errors import CheckpointError, ConfigError, ReconError
from recon_ray.models.batch_norm import BatchNorm
from recon_ray.runs.checkpoint import CheckpointStore, pack
from recon_ray.tasks.partseg import job as partseg
from recon_ray.tasks.partseg.config import PartsegConfig
from recon_ray.tasks.pretrain import job as pretraining
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


def train_records(folder: Path) -> list[dict[str, float]]:
    """Everything in the records of training that does not depend on the machine."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in record.items() if not name.startswith("perf/")}
        for record in records
        if "train/loss" in record
    ]


@pytest.mark.parametrize("stops", [[3], [7], [2, 4, 6, 9], [5, 10]])
def test_a_continued_run_has_the_records_of_the_whole_run(tiny_config, tiny_prepared, stops):
    config = changed(tiny_config, eval={"enabled": False}, train={"log_every_steps": 5})
    metrics, whole = pretrain_here(changed(config, run={"name": "whole"}), tiny_prepared)
    for steps in [*stops, None]:
        part = changed(config, run={"name": "part"}, train={"steps": steps})
        result, continued = pretrain_here(part, tiny_prepared)
    assert [record["step"] for record in train_records(whole)] == [5, 10, 12]
    assert train_records(continued) == train_records(whole)
    assert result["loss_last"] == metrics["loss_last"]
    pretrain_here(part, tiny_prepared)  # the result of what has ended is made again
    assert train_records(continued) == train_records(whole)


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
    "no-teacher": {"teacher": TeacherSection(image={"name": None}, text={"name": None})},
}
#: Shapes of blocks that no loss reaches: the patches of the last one are not read.
FIRST_BLOCKS = {
    "preset": "nano", "embed_dim": 24, "depth": 3, "num_heads": 2, "num_groups": 8, "group_size": 8,
    "feature_blocks": (0, 1), "propagation_widths": (32, 24), "head_widths": (24, 16),
    "dropout": 0.0, "drop_path": 0.0,
}  # fmt: skip
#: The same, of compiled steps.
COMPILED_OF_TWO = {
    "compiled": {},
    "compiled-flat": {"train": {"gradient_exchange": "flat"}},
    "compiled-local": OF_TWO["local"],
    "compiled-again": {"train": {"activation_checkpointing": True}},
}


@pytest.fixture(scope="module")
def of_two(tiny_config_in, tiny_parts, tmp_path_factory) -> Path:
    """The folder with the runs of two workers, one after the other in the same two processes."""
    folder = tmp_path_factory.mktemp("two")
    config = tiny_config_in(folder)
    configs = [
        changed(config, run={"name": name}, eval={"enabled": name == "plain"}, **changes)
        for name, changes in OF_TWO.items()
    ]
    configs.append(parts_config(folder, tiny_parts))
    mp.start_processes(_worker, (2, configs), nprocs=2, start_method="spawn")
    return folder


def parts_config(storage: Path, prepared: PreparedSet) -> PartsegConfig:
    """A part segmentation of which some parameters get no gradient."""
    return PartsegConfig(
        run={"name": "parts", "storage": str(storage), "seed": 3},
        data={"path": str(prepared.path), "num_points": 64},
        model=FIRST_BLOCKS,
        train={"epochs": 2, "global_batch_size": 4, "log_every_steps": 1, "clip_norm": 10},
        optim={"lr": 2e-3, "warmup_epochs": 1},
        cluster={"workers": 0},
        runtime={"threads": 1},
    )


def _worker(rank: int, world_size: int, configs: list[TrainingConfig]) -> None:
    torch.set_num_threads(1)
    for config in configs:
        torch._dynamo.reset()  # or the model of the run before would be compiled for this one too
        meet = f"file://{config.run.storage}/{config.run.name}.rendezvous"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
        _train(rank, world_size, config)
        dist.destroy_process_group()


def _train(rank: int, world_size: int, config: TrainingConfig) -> None:
    prepared = PreparedSet.open(config.data.path)
    is_parts = isinstance(config, PartsegConfig)
    run = open_run("partseg" if is_parts else "pretrain", config, label="test", resume="auto")
    run.folder.local.mkdir(parents=True, exist_ok=True)
    job = (partseg if is_parts else pretraining).plan(run, config, prepared)
    columns, split = list(job.options.columns), job.train_split
    train = prepared.read(split, columns=columns, views=job.uses_views)
    views = [train.select(["sample_id", "views"])] if job.uses_views else None
    tables = {
        split.name: IndexedTable([train.select(columns)], views),
        "test": IndexedTable([prepared.read("test", columns=columns)]),
    }
    feed = IndexedFeed(tables[split.name], job.options, seed=config.run.seed)
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
        state.newest_checkpoint(store, torch.device("cpu"), rank=0)
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


def test_parameters_without_a_gradient_are_found_and_change_nothing(
    tiny_config, tiny_prepared, tiny_parts, of_two
):
    config = changed(tiny_config, **OF_TWO["no-teacher"], eval={"enabled": False})
    _, alone = pretrain_here(config, tiny_prepared)
    assert losses(of_two / "no-teacher") == pytest.approx(losses(alone), rel=1e-4)
    parts = parts_config(Path(tiny_config.run.storage), tiny_parts)
    run = start_run("partseg", parts, label="test", resume="auto")
    train_here(partseg.plan(run, parts, tiny_parts))
    assert losses(of_two / "parts") == pytest.approx(losses(run.folder.local), rel=1e-4)
    assert len(losses(of_two / "parts")) == 4


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


class Poison:
    """A task's loss, or its gradient alone, is not a number in one step."""

    def __init__(self, monkeypatch, at: int, *, gradient_only: bool) -> None:
        self.calls, self.at, self.gradient_only = 0, at, gradient_only
        self.original = PretrainModule.forward
        monkeypatch.setattr(PretrainModule, "forward", lambda *given: self(*given))

    def __call__(self, module, batch, source):
        losses = self.original(module, batch, source)
        if module.training:
            self.calls += 1
        if module.training and self.calls == self.at:
            loss = losses["loss"]
            root_of_zero = (loss - loss.detach()).square().sqrt()  # has no gradient
            losses["loss"] = loss + root_of_zero if self.gradient_only else loss * float("nan")
        return losses


@pytest.mark.parametrize("gradient_only", [False, True])
def test_one_bad_step_between_two_records_is_not_committed(
    tiny_config, tiny_prepared, monkeypatch, gradient_only
):
    train = {"log_every_steps": 100, "keep_every_steps": 4, "commit_every_seconds": 1e6}
    config = changed(tiny_config, eval={"enabled": False}, train=train)
    with monkeypatch.context() as patch:
        Poison(patch, 8 if gradient_only else 6, gradient_only=gradient_only)
        fault = "weights are" if gradient_only else "loss is"
        with pytest.raises(ReconError, match=rf"step 8: the {fault} not finite \(.*resume=") as err:
            pretrain_here(config, tiny_prepared)
    sound = Path(str(err.value).partition(" resume=")[2])
    store = CheckpointStore(str(sound.parent))
    assert store.names() == [sound.name] == ["step-00000004"]
    assert all(v.isfinite().all() for v in store.load_latest().model.values())
    metrics, folder = pretrain_here(config, tiny_prepared)  # the same command recovers
    assert metrics["steps"] == 12
    _, whole = pretrain_here(changed(config, run={"name": "whole"}), tiny_prepared)
    assert_same_weights(folder, whole)


def test_a_checkpoint_of_an_older_version_that_is_not_finite_is_passed_over(
    tiny_config, tiny_prepared, caplog
):
    config = changed(tiny_config, eval={"enabled": False}, train={"keep_every_steps": 2})
    _, folder = pretrain_here(changed(config, train={"steps": 4}), tiny_prepared)
    store = CheckpointStore(str(folder / "checkpoints"))
    sound = store.load("step-00000004")
    bad = {name: v * float("nan") if "blocks" in name else v for name, v in sound.model.items()}
    shutil.rmtree(store.path("step-00000004"))
    store.write(pack(4, model=bad, train=sound.train, architecture=sound.architecture))
    with pytest.raises(CheckpointError, match=r"model\.pt: \d+ of \d+ weights are not finite"):
        CheckpointStore(store.uri).load("step-00000004")
    with pytest.raises(CheckpointError, match=r"weights are not finite .* give another checkpoint"):
        open_run("pretrain", changed(config, run={"name": "other"}), label="x",
                 resume=store.path("step-00000004"))  # fmt: skip
    pretrain_here(config, tiny_prepared)
    assert "weights are not finite" in caplog.text
    assert "trying the checkpoint before it" in caplog.text
    again = CheckpointStore(store.uri).load("step-00000004")  # written anew on the way
    assert all(torch.equal(again.model[name], sound.model[name]) for name in sound.model)


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
