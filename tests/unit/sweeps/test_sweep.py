"""Sweeps and few-shot runs in this process: what is refused, what is left, what is repeated."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recon_ray.config.loader import load, override
from recon_ray.data.fewshot.draw import draw_episodes
from recon_ray.data.format.files import write_json, write_table
from recon_ray.data.format.prepared import EPISODES_RECORD, PreparedSet, read_episodes
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.procedural.synthetic import SyntheticSource
from recon_ray.errors import ConfigError, DataError, ReconError
from recon_ray.sweeps import disk, trial
from recon_ray.sweeps.config import SweepConfig
from recon_ray.sweeps.disk import DiskEstimate
from recon_ray.sweeps.fewshot.config import FewshotConfig
from recon_ray.sweeps.fewshot.job import fewshot, fold_trial
from recon_ray.sweeps.job import sweep
from recon_ray.sweeps.sweep_plan import plan_sweep
from recon_ray.tasks.classify import episodes as episode_sets
from recon_ray.tasks.classify.config import FinetuneConfig
from recon_ray.tasks.classify.episodes import open_episode, shared_clouds
from recon_ray.tasks.classify.finetune_job import finetune, open_set
from recon_ray.tasks.registry import Job, JobResult

DROPS = {"train.keep_optimizer": None}
MakeSweep = Callable[..., SweepConfig]
CONFIGS = Path(__file__).resolve().parents[3] / "configs"
TINY = {
    "model": {
        "preset": "nano", "embed_dim": 24, "depth": 1, "num_heads": 2, "num_groups": 8,
        "group_size": 8,
    },
    "train": {"epochs": 2, "global_batch_size": 8, "log_every_steps": 1},
    "optim": {"lr": 1e-3, "warmup_epochs": 1},
}  # fmt: skip


@pytest.fixture
def make_sweep(tiny_prepared: PreparedSet, tmp_path: Path) -> MakeSweep:
    def make(sweep: dict[str, Any], **inner: Any) -> SweepConfig:
        data = {"path": str(tiny_prepared.path), "num_points": 64}
        return SweepConfig(
            run={"name": "s", "storage": str(tmp_path)},
            cluster={"workers": 0},
            config={"data": data, **TINY, "runtime": {"threads": 1}, **inner},
            sweep=sweep,
        )

    return make


def run(config: SweepConfig, **origins: str) -> JobResult:
    return sweep(Job("sweep", config, origins, ()))


def test_a_failed_trial_runs_again_and_no_other(make_sweep: MakeSweep, tmp_path: Path) -> None:
    config = make_sweep({"space": {"model.num_heads": {"grid": [2, 5, 4]}}})
    result = run(config)
    assert result.failure is not None
    assert re.match(r"1 of 3 trials failed \(001_num_heads-5\); .* num_heads=5", result.failure)
    trials = tmp_path / "s" / "trials"
    before = {path: path.stat().st_mtime_ns for path in trials.glob("*/result.json")}
    assert [path.parent.name for path in sorted(before)] == ["000_num_heads-2", "002_num_heads-4"]
    again = run(config)
    assert again.failure == result.failure
    assert {path: path.stat().st_mtime_ns for path in before} == before
    record = json.loads((tmp_path / "s" / "result.json").read_text())
    assert record["counts"] == {"trials": 3, "done": 2, "stopped": 0, "failed": 1, "waiting": 0}
    kept = [path.name for path in trials.glob("*/checkpoints/*/*.pt")]  # no optimizer
    assert {*kept} == {"model.pt", "progress.pt"}
    assert record["status"] == "incomplete"
    assert (tmp_path / "s" / "report.html").read_text().count("data:image/png") == 2


def test_figures_over_seeds_are_those_of_the_files(make_sweep: MakeSweep, tmp_path: Path) -> None:
    result = run(make_sweep({"seeds": 3}))
    assert result.failure is None
    files = sorted((tmp_path / "s" / "trials").glob("*/result.json"))
    numbers = [json.loads(path.read_text())["metrics"]["accuracy"] for path in files]
    mean = sum(numbers) / 3
    deviation = math.sqrt(sum((number - mean) ** 2 for number in numbers) / 2)
    record = json.loads((tmp_path / "s" / "result.json").read_text())
    assert record["metrics"]["accuracy"] == pytest.approx(mean, abs=1e-12)
    assert record["metrics"]["accuracy_std"] == pytest.approx(deviation, abs=1e-12)
    assert "none is left out" in record["selection"]
    assert record["status"] == "done"
    table = pq.read_table(tmp_path / "s" / "trials.parquet")
    assert table["metrics.accuracy"].to_pylist() == numbers
    assert table["run.seed"].to_pylist() == [0, 1, 2]


def test_equal_draws_are_run_once_and_counted_once(make_sweep: MakeSweep, tmp_path: Path) -> None:
    """Four draws of two values, with two seeds each."""
    space = {"train.tune": {"choice": ["full", "mlp3"]}}
    options = {"space": space, "samples": 4, "seed": 1, "seeds": 2}
    config = make_sweep(options)
    planned = sweep(Job("sweep", config, {}, (), dry_run=True)).table
    assert "4 of 8 draws repeat the configuration and seed of an earlier one" in planned
    result = run(config)
    record = json.loads((tmp_path / "s" / "result.json").read_text())
    assert record["counts"]["trials"] == len([*(tmp_path / "s" / "trials").iterdir()]) == 4
    assert [(line["count"], len({*line["trials"]})) for line in record["summary"]] == [(2, 2)] * 2
    assert record["notes"][0].endswith("each is run once and counts once")
    assert record["notes"][0] in result.table
    assert record["notes"][0] in (tmp_path / "s" / "report.html").read_text()
    (tmp_path / "s" / "result.json").unlink()
    assert run(make_sweep({**options, "samples": 5})).failure is None  # the first ones stay


def test_missing_seeds_are_not_said_to_be_counted(make_sweep: MakeSweep, tmp_path: Path) -> None:
    run(make_sweep({"seeds": 3}))
    (lost,) = (tmp_path / "s" / "trials").glob("*_seed-1")
    (lost / "result.json").unlink()
    write_json(lost / "environment.json", {"job": "embed"})  # so that it is refused
    result = run(make_sweep({"seeds": 3}))
    record = json.loads((tmp_path / "s" / "result.json").read_text())
    assert result.failure is not None
    assert record["status"] == "incomplete"
    assert "Mean over all seeds but those of 001_seed-1, which are not done" in record["selection"]
    assert "2 of 3" in result.table


def test_a_trial_that_continues_alone_keeps_its_threads(
    make_sweep: MakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another number of threads sums in another order."""

    def threads() -> list[int]:
        files = sorted((tmp_path / "s" / "trials").glob("*/config.yaml"))
        return [load(FinetuneConfig, [str(file)]).config.runtime.threads or 0 for file in files]

    monkeypatch.setattr(trial, "cpu_count", lambda: 1)
    run(make_sweep({"seeds": 3}, runtime={}))
    assert threads() == [1, 1, 1]
    # One was killed in the middle, another one before it began; the machine has more room now.
    folders = sorted((tmp_path / "s" / "trials").iterdir())
    before = json.loads((folders[1] / "result.json").read_text())["metrics"]
    (folders[1] / "result.json").unlink()
    shutil.rmtree(folders[2])
    monkeypatch.setattr(trial, "cpu_count", lambda: 2)
    run(make_sweep({"seeds": 3}, runtime={}))
    assert threads() == [1, 1, 1]
    assert (
        json.loads((folders[1] / "result.json").read_text())["metrics"]["accuracy"]
        == (before["accuracy"])
    )
    with pytest.raises(ConfigError, match=r"config\.runtime\.threads=2: .* was begun with 1, "):
        run(make_sweep({"seeds": 3}, runtime={"threads": 2}))


def test_the_plan_states_the_disk(
    make_sweep: MakeSweep,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kept are as many checkpoints as configured; the estimate is that of the files."""
    options = {"space": {"optim.lr": {"grid": [1e-3, 1e-4]}}, "seeds": 2}
    kept = {"keep_checkpoints": 2, "keep_optimizer": True}
    config = make_sweep(options, train={**TINY["train"], **kept})
    text = sweep(Job("sweep", config, {}, (), dry_run=True)).table
    assert re.search(r"disk: 4 trainings keep up to 0\.0 GB of checkpoints in .* GB are free", text)
    trials = [FinetuneConfig(**config.config)] * 4
    estimate = DiskEstimate(str(tmp_path), trials)
    run(config)
    steps = [*(tmp_path / "s" / "trials").glob("*/checkpoints/step-*")]
    sizes = [sum(file.stat().st_size for file in step.iterdir()) for step in steps]
    assert max(sizes) < estimate.total / 8 * 1.5
    assert max(sizes) > estimate.total / 8 * 0.9
    # Without, only a trial that runs has moments, twice the size of its weights: 12 of 24 parts.
    monkeypatch.setattr(disk, "cpu_count", lambda: 1)
    dropping = DiskEstimate(str(tmp_path), [override(one, DROPS) for one in trials])
    assert dropping.total == pytest.approx(estimate.total / 2, rel=0.05)
    estimate.total = 10**18
    with caplog.at_level(logging.WARNING):
        estimate.warn()
    assert "keep up to 1000000000.0 GB" in caplog.text
    assert "free space, or lower train.keep_checkpoints" in caplog.text


def test_a_trial_can_be_run_again_by_hand_and_is_in_tensorboard(
    make_sweep: MakeSweep, tmp_path: Path
) -> None:
    run(make_sweep({"space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}}, "samples": 1}))
    (folder,) = (tmp_path / "s" / "trials").iterdir()
    arguments = [str(folder / "config.yaml"), "run.name=again", f"run.storage={tmp_path}"]
    by_hand = finetune(Job("finetune", load(FinetuneConfig, arguments).config, {}, ()))
    first, second = (
        json.loads(Path(path).read_text())["metrics"]
        for path in (folder / "result.json", str(by_hand.result_path))
    )
    timed = ("samples_per_second", "peak_memory_bytes", "commit_fraction")
    assert {k: first[k] for k in first if k not in timed} == {
        k: second[k] for k in second if k not in timed
    }
    progress = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert {"train/loss", "result/accuracy"} <= {*progress.Tags()["scalars"]}
    assert "_hparams_/session_start_info" in progress.summary_metadata


def test_a_search_selects_on_shapes_held_out_of_the_training_split(
    make_sweep: MakeSweep, tiny_prepared: PreparedSet, tmp_path: Path
) -> None:
    data = {
        "path": str(tiny_prepared.path), "num_points": 64, "validation_split": "val",
        "validation_fraction": 0.25,
    }  # fmt: skip
    options = {"space": {"optim.lr": {"grid": [1e-3, 1e-2]}}, "metric": "validation_accuracy_best"}
    result = run(make_sweep(options, data=data, cluster={"workers": 0}))
    assert result.failure is None
    for file in (tmp_path / "s" / "trials").glob("*/result.json"):
        record = json.loads(file.read_text())
        assert record["counts"]["samples"] == {"train": 18, "test": 12, "val": 6}
        assert record["counts"]["steps"] == 4  # two epochs of two whole batches of eight
        assert re.match(r"best epoch \(\d\) on 'val', measured on 'test'", record["selection"])
        right = 6 * record["metrics"]["validation_accuracy_best"]  # of six shapes
        assert right == pytest.approx(round(right), abs=1e-9)
    selection = json.loads((tmp_path / "s" / "result.json").read_text())["selection"]
    assert "optimistic" not in selection


def test_another_metric_needs_no_trial_again(make_sweep: MakeSweep) -> None:
    varied = {"space": {"optim.lr": {"grid": [1e-3, 1e-4]}}}
    with pytest.raises(ReconError, match=r"sweep\.metric=acuracy: .* did you mean accuracy\?"):
        run(make_sweep({**varied, "metric": "acuracy", "grace_epochs": 1}))  # once the default
    result = run(make_sweep({**varied, "metric": "loss_last", "mode": "min"}))
    assert "loss_last, mean ± std" in result.table


@pytest.mark.parametrize(
    ("options", "inner", "message"),
    [
        ({"space": {"optim.lrr": {"grid": [1]}}}, {}, r"optim\.lrr .*did you mean optim\.lr\?"),
        ({"space": {"optim.lr": {"uniform": [-1, 1]}}}, {}, r"optim\.lr .*a number > 0, found -1"),
        ({"space": {"run.name": {"grid": ["a"]}}}, {}, r"run\.name .*is set by the sweep"),
        ({"seeds": 2}, {"optin": {"lr": 1}}, r"optin\.lr .*unknown key; did you mean optim\.lr\?"),
        ({"seeds": 2}, {"data": {"path": "absent"}}, r"config\.data\.path=absent: no such folder"),
        ({"seeds": 2}, {"include": ["absent.yaml"]}, r"absent\.yaml: no such file"),
        (
            {"space": {"train.tune": {"grid": ["full"]}}, "scheduler": "asha"},
            {},
            r"cluster\.workers=0 runs one trial after another",
        ),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
    make_sweep: MakeSweep,
    tmp_path: Path,
    options: dict[str, Any],
    inner: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run(make_sweep(options, **inner))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("train", "more", "message"),
    [
        ({"epochs": 2}, {}, r"would stop nothing: the grace is 2 of config\.train\.epochs=2"),
        ({"epochs": 9}, {"grace_epochs": 9}, r"the grace is 9 of config\.train\.epochs=9"),
        ({"epochs": 9, "steps": 3}, {}, r"config\.train\.steps=3 may end a trial within one"),
    ],
)
def test_a_scheduler_that_could_not_judge_is_refused(
    make_sweep: MakeSweep, train: dict[str, int], more: dict[str, Any], message: str
) -> None:
    watched = {"watch": "train/loss", "watch_mode": "min", "scheduler": "median", **more}
    options = {"space": {"optim.lr": {"grid": [1e-3]}}, **watched}
    config = make_sweep(options, train={**TINY["train"], **train})
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"workers": 1})})
    with pytest.raises(ConfigError, match=message):
        run(config)


def test_the_grace_is_the_warm_up_and_a_quarter_of_the_longest_trial(
    make_sweep: MakeSweep,
) -> None:
    space = {"train.epochs": {"grid": [8, 20]}, "optim.warmup_epochs": {"uniform": [0.5, 2.5]}}
    config = make_sweep({"space": space, "scheduler": "none"})
    assert plan_sweep(config, {}).grace == max(1 + 5, 3 + 2)


def test_a_scheduler_needs_something_to_compare(make_sweep: MakeSweep) -> None:
    config = make_sweep({"space": {"optim.lr": {"grid": [1e-3]}}, "scheduler": "asha"})
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"workers": 1})})
    with pytest.raises(ConfigError, match="the trials are not validated while they train"):
        run(config)


def test_the_dry_run_lists_the_trials(make_sweep: MakeSweep, tmp_path: Path) -> None:
    config = make_sweep({"space": {"optim.lr": {"grid": [1e-3, 1e-4]}}, "seeds": 2})
    result = sweep(Job("sweep", config, {}, (), dry_run=True))
    assert "003_lr-0.0001_seed-1" in result.table
    assert list(tmp_path.iterdir()) == []


def test_the_jobs_own_files_are_included(make_sweep: MakeSweep, tmp_path: Path) -> None:
    (tmp_path / "inner.yaml").write_text("train:\n  tune: mlp3\noptim:\n  lr: 5e-3\n")
    config = make_sweep({"seeds": 2}, include=["inner.yaml"], optim={"lr": 1e-3})
    result = sweep(Job("sweep", config, {"config.include": f"{tmp_path}/s.yaml:3"}, ()))
    assert result.failure is None
    trial = load(FinetuneConfig, [str(next((tmp_path / "s").glob("trials/*/config.yaml")))]).config
    assert (trial.train.tune, trial.optim.lr) == ("mlp3", 1e-3)


# --- Few-shot -------------------------------------------------------------------------------------
@pytest.fixture
def episodes(tiny_prepared: PreparedSet, tmp_path: Path) -> Path:
    """Two folds of two classes: three training shapes of each, four test shapes."""
    return draw(tiny_prepared, tmp_path, test_per_class=4)


def draw(prepared: PreparedSet, storage: Path, *, test_per_class: int) -> Path:
    columns: list[Any] = []
    for split in ("train", "test"):
        rows = prepared.read(split, ["object_id", "label"])
        columns += [rows["object_id"].to_pylist(), rows["label"].to_pylist()]
    folder = storage / "episodes"
    folder.mkdir()
    options = {"ways": (2,), "shots": (3,), "folds": 2, "test_per_class": test_per_class}
    table = draw_episodes(*columns, **options, seed=0)
    record = {"manifest_sha256": prepared.manifest_hash}
    entry = write_table(folder, "episodes.parquet", table)
    write_json(folder / EPISODES_RECORD, {**record, **entry})
    return folder


def few(prepared: PreparedSet, episodes: Path, storage: Path, **more: Any) -> FewshotConfig:
    data = {"path": str(prepared.path), "num_points": 64, "episodes": str(episodes)}
    options = {"data": data, "fewshot": {"way": 2, "shot": 3, "folds": 2}, **TINY, **more}
    return FewshotConfig(
        run={"name": "f", "storage": str(storage)},
        cluster={"workers": 0},
        runtime={"threads": 1},
        **options,
    )


def run_few(*arguments: Any, **more: Any) -> JobResult:
    return fewshot(Job("fewshot", few(*arguments, **more), {}, ()))


def of_episode(config: FewshotConfig, fold: int) -> FewshotConfig:
    data = config.data.model_copy(update={"episode": (2, 3, fold)})
    return config.model_copy(update={"data": data})


def test_folds_are_averaged(tiny_prepared: PreparedSet, episodes: Path, tmp_path: Path) -> None:
    result = run_few(tiny_prepared, episodes, tmp_path / "r")
    assert result.failure is None
    folder = tmp_path / "r" / "f"
    files = sorted(folder.glob("trials/2way_3shot_0?/result.json"))
    numbers = [json.loads(path.read_text())["metrics"]["accuracy"] for path in files]
    record = json.loads((folder / "result.json").read_text())
    assert len(numbers) == 2
    assert record["status"] == "done"
    assert record["metrics"]["accuracy_2way_3shot"] == pytest.approx(sum(numbers) / 2, abs=1e-12)
    half = abs(numbers[0] - numbers[1]) / math.sqrt(2)  # ddof=1 of two numbers
    assert record["metrics"]["accuracy_2way_3shot_std"] == pytest.approx(half, abs=1e-12)
    fold = load(FinetuneConfig, [str(files[0].with_name("config.yaml"))]).config
    # Six shapes: the largest batch up to eight that leaves none out.
    assert (fold.data.episode, fold.train.global_batch_size) == ((2, 3, 0), 6)
    assert json.loads(files[0].read_text())["counts"]["samples"] == {"test": 8, "train": 6}


def test_an_episode_that_only_batches_of_one_divide_is_refused() -> None:
    config = FinetuneConfig(train={"global_batch_size": 8})
    assert fold_trial(config, (7, 1, 0)).values["train.global_batch_size"] == 7
    message = r"global_batch_size=8: an episode of 11 x 1 shapes .* raise it to 11"
    with pytest.raises(ConfigError, match=message):
        fold_trial(config, (11, 1, 0))


@pytest.mark.parametrize(
    ("card", "is_theirs"),
    [
        (None, False),
        ({"name": "modelnet10", "title": "ModelNet10", "counts": {"train": 24, "test": 12}}, False),
        ({"name": "modelnet40", "title": "ModelNet40", "counts": {"train": 99, "test": 12}}, False),
        ({"name": "modelnet40", "title": "ModelNet40", "counts": {"train": 24, "test": 12}}, True),
    ],
)
def test_published_numbers_stand_beside_those_of_their_set_only(
    tiny_prepared: PreparedSet, tmp_path: Path, card: dict[str, Any] | None, is_theirs: bool
) -> None:
    shutil.copytree(tiny_prepared.path, tmp_path / "set")
    manifest = json.loads((tmp_path / "set" / "_manifest.json").read_text())
    write_json(tmp_path / "set" / "_manifest.json", {**manifest, "card": card})
    prepared = PreparedSet.open(tmp_path / "set")
    result = run_few(prepared, draw(prepared, tmp_path, test_per_class=4), tmp_path / "r")
    assert result.failure is None
    page = (tmp_path / "r" / "f" / "report.html").read_text()
    for text in (result.table, page):
        assert ("published (ModelNet40)" in text) == is_theirs


def test_the_published_protocol_of_folds_runs_end_to_end(tmp_path: Path) -> None:
    """An epoch more than stated, the head of all classes, incomplete batches left out."""
    source = SyntheticSource(
        train_per_class=3, test_per_class=2, categories=("chair", "lamp", "mug")
    )
    prepare(source, tmp_path / "set", PrepareOptions(num_points=1024, samples_per_shard=15))
    prepared = PreparedSet.open(tmp_path / "set")
    episodes = draw(prepared, tmp_path, test_per_class=2)
    result = run_few(
        prepared,
        episodes,
        tmp_path / "r",
        protocol="reference",
        data={"path": str(prepared.path), "num_points": 1024, "episodes": str(episodes)},
        train={**TINY["train"], "global_batch_size": 4},
    )
    assert result.failure is None
    folder = tmp_path / "r" / "f"
    for fold in sorted((folder / "trials").iterdir()):
        record = json.loads((fold / "result.json").read_text())
        # Six training shapes are one batch of four; epochs 0, 1 and 2.
        assert (record["counts"]["epochs"], record["counts"]["steps"]) == (3, 3)
        assert record["counts"]["classes"] == 3  # outputs, of which two are used
        assert np.array(record["confusion"])[:2].sum() == 4
        assert record["protocol"] == "reference"
        assert re.search(
            r"best epoch \(\d\) on 'test', on which it is measured too", record["selection"]
        )
        assert record["metrics"]["accuracy"] == record["metrics"]["accuracy_best"]
        own = load(FinetuneConfig, [str(fold / "config.yaml")]).config
        assert own.train.global_batch_size == 4
    assert "best on test, mean ± std" in (folder / "report.html").read_text()


def test_an_episode_has_its_own_labels_and_the_head_of_its_protocol(
    tiny_prepared: PreparedSet, episodes: Path, tmp_path: Path
) -> None:
    config = of_episode(few(tiny_prepared, episodes, tmp_path), 1)
    sound = open_episode(config, tiny_prepared)
    reference = open_episode(config.model_copy(update={"protocol": "reference"}), tiny_prepared)
    assert len(sound.classes) == 2
    assert reference.classes == [*sound.classes, "unused 2"]
    table = sound.read("train", ["points", "label", "object_id"])
    own = tiny_prepared.read("train", ["object_id", "label", "points"])
    labels = dict(zip(own["object_id"].to_pylist(), own["label"].to_pylist(), strict=True))
    names = dict(zip(own["object_id"].to_pylist(), range(len(own)), strict=True))
    for i, (name, label) in enumerate(
        zip(table["object_id"].to_pylist(), table["label"].to_pylist(), strict=True)
    ):
        assert tiny_prepared.classes[labels[name]] == sound.classes[label]
        np.testing.assert_array_equal(
            table["points"].slice(i, 1).combine_chunks().to_numpy_ndarray(),
            own["points"].slice(names[name], 1).combine_chunks().to_numpy_ndarray(),
        )


def test_shared_clouds_are_taken_without_reading(
    tiny_prepared: PreparedSet, episodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = few(tiny_prepared, episodes, tmp_path)
    shared = episode_sets.read_clouds(base, tiny_prepared, [(2, 3, 0), (2, 3, 1)])
    used = {*read_episodes(episodes)["object_id"].to_pylist()}
    assert shared.count == len(used)
    monkeypatch.setattr(episode_sets, "read_clouds", lambda *_: pytest.fail("read again"))
    with shared_clouds(shared):
        assert open_episode(of_episode(base, 1), tiny_prepared).splits["train"].rows == 6


def test_the_shipped_configurations_learn_one_episode_and_all_of_them(
    tiny_prepared: PreparedSet, episodes: Path, tmp_path: Path
) -> None:
    for name in ("fewshot", "fewshot_linear", "fewshot_mlp3"):
        config = load(FinetuneConfig, [str(CONFIGS / "finetune" / f"{name}.yaml")]).config
        assert (config.data.episode, config.cluster.workers) == ((5, 10, 0), 0)
    for name in ("full", "linear", "mlp3"):
        everything = load(FewshotConfig, [str(CONFIGS / "fewshot" / f"{name}.yaml")]).config
        assert everything.data.episode is None
        assert len(everything.fewshot.episodes) == 40
    assert everything.data.episodes == config.data.episodes == "datasets/episodes"
    given = (
        str(CONFIGS / "finetune" / "fewshot_linear.yaml"), f"data.path={tiny_prepared.path}",
        f"data.episodes={episodes}", "data.episode=[2, 3, 1]", "data.num_points=64",
        "protocol=sound",
    )  # fmt: skip
    found = open_set(load(FinetuneConfig, given).config)
    assert len(found.classes) == 2
    assert {name: split.rows for name, split in found.splits.items()} == {"train": 6, "test": 8}


def test_episodes_are_checked(tiny_prepared: PreparedSet, episodes: Path, tmp_path: Path) -> None:
    section = {"way": 2, "shot": 3, "folds": 3}
    with pytest.raises(DataError, match=r"no episode of way 2, shot 3, fold 2; there are 2: 2/3/0"):
        run_few(tiny_prepared, episodes, tmp_path / "r", fewshot=section)
    with pytest.raises(ConfigError, match=r"data\.episodes=.*absent: no such folder"):
        run_few(tiny_prepared, tmp_path / "absent", tmp_path / "r")
    table = read_episodes(episodes)
    first = table.filter(pc.equal(table["fold"], 0))
    second = first.set_column(2, table.field("fold"), pa.array([1] * len(first), pa.int16()))
    twice = write_table(episodes, "episodes.parquet", pa.concat_tables([first, second]))
    record = {"manifest_sha256": tiny_prepared.manifest_hash, **twice}
    write_json(episodes / EPISODES_RECORD, record)
    with pytest.raises(DataError, match=r"fold 1 of 2-way 3-shot has the same shapes .* as fold 0"):
        run_few(tiny_prepared, episodes, tmp_path / "r")
    write_json(episodes / EPISODES_RECORD, {"manifest_sha256": "0" * 64})
    with pytest.raises(ConfigError, match="were drawn from another set"):
        run_few(tiny_prepared, episodes, tmp_path / "r")
    with pytest.raises(ConfigError, match="does not fill a batch"):
        run_few(tiny_prepared, episodes, tmp_path / "r", protocol="reference")
    assert not (tmp_path / "r").exists()
