"""What counts as another configuration when a run is continued, and whose a folder is."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from job_samples import changed, run_config

from recon_ray.config.help import dump_yaml
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.procedural.synthetic import SyntheticSource
from recon_ray.errors import ConfigError, ReconError
from recon_ray.runs.folder import RunFolder
from recon_ray.sweeps.config import SweepConfig
from recon_ray.tasks.linear_probe.config import LinearProbeConfig
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.run import refuse_other_config, start_run


def folder_of_a_run(path, config, *, without: str) -> RunFolder:
    """A run that was begun when there was no such option yet."""
    folder = RunFolder(str(path))
    tree = yaml.safe_load(dump_yaml(config))
    *sections, name = without.split(".")
    inner = tree
    for section in sections:
        inner = inner[section]
    del inner[name]
    folder.write("config.yaml", yaml.safe_dump(tree))
    return folder


def test_an_added_option_had_its_default_and_memory_may_be_saved(tmp_path):
    config = PretrainConfig(run={"name": "run"})
    folder = folder_of_a_run(tmp_path, config, without="train.sync_batch_norm")
    refuse_other_config(folder, config)
    other = PretrainConfig(run={"name": "run"}, train={"sync_batch_norm": False})
    with pytest.raises(ConfigError, match=r"train.sync_batch_norm: True then, False now"):
        refuse_other_config(folder, other)
    folder = folder_of_a_run(tmp_path, config, without="train.steps")
    less = PretrainConfig(run={"name": "run"}, train={"activation_checkpointing": True})
    refuse_other_config(folder, less)


def test_a_job_that_needs_an_option_has_defaults_for_the_others(tmp_path):
    config = LinearProbeConfig(init_from="weights", run={"name": "run"})
    folder = folder_of_a_run(tmp_path, config, without="probe")
    refuse_other_config(folder, config)
    other = LinearProbeConfig(init_from="weights", run={"name": "run"}, probe={"svm_c": 7.0})
    with pytest.raises(ConfigError, match=r"probe.svm_c: 0.075 then, 7.0 now"):
        refuse_other_config(folder, other)


def test_a_section_without_which_there_is_no_configuration_has_defaults_too(tmp_path):
    config = SweepConfig(run={"name": "run"}, sweep={"seeds": 2})
    folder = folder_of_a_run(tmp_path, config, without="sweep.watch_mode")
    refuse_other_config(folder, config)


def test_a_set_or_weights_in_another_place_are_the_same_by_their_content(tmp_path):
    then = LinearProbeConfig(init_from="weights", run={"name": "run"}, data={"path": "set"})
    now = LinearProbeConfig(init_from="moved", run={"name": "new"}, data={"path": "copy"})
    folder = RunFolder(str(tmp_path))
    folder.write("config.yaml", dump_yaml(then))
    folder.write("inputs.json", json.dumps({"init_from": "a", "data.path": "b"}))
    refuse_other_config(folder, now, {"init_from": "a", "data.path": "b"})
    with pytest.raises(ConfigError, match=r"\(init_from: 'weights' then, 'moved' now\)"):
        refuse_other_config(folder, now, {"init_from": "c", "data.path": "b"})


# --- Jobs that are started in the same moment ----------------------------------------------------
def started_together(count: int, config: PretrainConfig, resume: str) -> list[str]:
    """Begin a run in several processes at once; return their folders, or why there is none."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(count), context.Queue()
    all_answered = context.Event()

    def begin() -> None:
        barrier.wait()
        try:
            run: Any = start_run("pretrain", config, label="nano", resume=resume)
            answers.put(run.folder.uri)
        except ReconError as error:
            run = None
            answers.put(str(error))
        all_answered.wait(30)  # it is running meanwhile

    processes = [context.Process(target=begin) for _ in range(count)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=30) for _ in range(count)]
    all_answered.set()
    for process in processes:
        process.join()
    return found


@pytest.fixture
def _one_second(monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "20261130-120000")


@pytest.mark.usefixtures("_one_second")
@pytest.mark.parametrize("resume", ["never", "auto"])
def test_jobs_of_the_same_second_get_folders_of_their_own(tmp_path, resume):
    config = PretrainConfig(run={"storage": str(tmp_path / "runs")})
    found = started_together(4, config, resume)
    folders = sorted(map(str, (tmp_path / "runs").iterdir()))
    assert folders == sorted(found)
    assert len({*found}) == 4
    for folder in map(Path, folders):
        assert folder.name.startswith("pretrain-nano-20261130-120000-")
        assert {path.name for path in folder.iterdir()} == {"config.yaml", "environment.json"}


@pytest.mark.usefixtures("_one_second")
@pytest.mark.parametrize("resume", ["never", "auto"])
def test_one_of_the_jobs_of_one_name_has_the_folder_and_the_others_are_told(tmp_path, resume):
    config = PretrainConfig(run={"name": "run", "storage": str(tmp_path)})
    for _ in range(3):
        found = started_together(4, config, resume)
        assert found.count(str(tmp_path / "run")) == 1, found
        others = [text for text in found if text != str(tmp_path / "run")]
        assert all("is running it now" in t or "in the same moment" in t for t in others), others
        (tmp_path / "run" / "lease.json").unlink(missing_ok=True)
        (tmp_path / "run" / "kept").mkdir(exist_ok=True)
    aside = ["run.20261130-120000", "run.20261130-120000-2"]
    expected = ["run", *(aside if resume == "never" else [])]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    for name in expected:
        inside = {path.name for path in (tmp_path / name).iterdir()}
        assert inside == {"config.yaml", "environment.json", "kept"}, name


# --- A set that grows -----------------------------------------------------------------------------
def test_a_run_goes_on_with_the_version_of_the_set_that_it_was_begun_on(
    tiny_config, tiny_prepared, tmp_path
):
    root = shutil.copytree(tiny_prepared.path, tmp_path / "set")
    config = changed(tiny_config, data={"path": str(root)}, eval={"enabled": False})
    run_config("pretrain", changed(config, train={"steps": 2}))
    source = SyntheticSource(train_per_class=8, test_per_class=4, categories=("airplane",))
    options = PrepareOptions(num_points=96, views=2, image_size=32, samples_per_shard=7)
    prepare(source, root, options, append=True)
    result, folder = run_config("pretrain", config)
    assert result["counts"]["training_samples"] == 24
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["version"] == 1
    later = changed(config, run={"name": "later"}, train={"steps": 1})
    assert run_config("pretrain", later)[0]["counts"]["training_samples"] == 32
    with pytest.raises(ConfigError, match=r"the set is no longer what .* was begun with"):
        run_config("pretrain", changed(config, data={"version": 2}))
