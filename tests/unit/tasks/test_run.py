"""What counts as another configuration when a run is continued."""

from __future__ import annotations

import pytest
import yaml

from recon_ray.config.help import dump_yaml
from recon_ray.errors import ConfigError
from recon_ray.runs.folder import RunFolder
from recon_ray.sweeps.config import SweepConfig
from recon_ray.tasks.linear_probe.config import LinearProbeConfig
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.run import refuse_other_config


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
