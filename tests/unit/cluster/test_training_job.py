"""What a training job leaves to the machine and to the protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recon_ray.cluster.training_job import TrainingJob, resolve_precision
from recon_ray.data.format.prepared import PreparedSet, Split
from recon_ray.data.loading.batches import BatchOptions
from recon_ray.errors import ConfigError
from recon_ray.runs.folder import RunFolder
from recon_ray.tasks.embed.config import EmbedConfig
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.train.settings import FitSettings


@pytest.mark.parametrize(
    ("protocol", "asked", "on_gpu", "found"),
    [
        ("sound", "auto", True, "bf16"),
        ("sound", "auto", False, "fp32"),
        ("reference", "auto", True, "fp32"),
        ("reference", "bf16", True, "bf16"),
        ("sound", "fp32", True, "fp32"),
    ],
)
def test_precision_follows_option_protocol_and_device(protocol, asked, on_gpu, found):
    config = PretrainConfig(protocol=protocol, runtime={"precision": asked})
    assert resolve_precision(config.precision, on_gpu=on_gpu) == found
    if protocol == "sound":  # jobs without a protocol follow the options alone
        other = EmbedConfig(init_from="x", files=["a.ply"], runtime={"precision": asked})
        assert resolve_precision(other.precision, on_gpu=on_gpu) == found


def job(tmp_path: Path, **sections: Any) -> TrainingJob:
    """A job on 200,000 shapes that do not exist."""
    config = PretrainConfig(**sections)
    split = Split("train", 200_000, 0, 200_000, [], [], [200_000])
    prepared = PreparedSet(tmp_path, {}, "", {"train": split})
    return TrainingJob(
        PretrainConfig, FitSettings(config), BatchOptions(), prepared, RunFolder(str(tmp_path)),
        smallest_batch=2,
    )  # fmt: skip


def test_the_number_of_workers_need_not_divide_the_batch(tmp_path):
    cluster, train = {"workers": (504, 512)}, {"global_batch_size": 131_072}
    large = job(tmp_path, cluster=cluster, train=train)
    large.check(large.config.cluster.allowed_workers)


@pytest.mark.parametrize(
    ("workers", "train", "message"),
    [
        (3, {"micro_batch_size": 1}, r"micro_batch_size=1: some of 3 workers have one shape less"),
        (5, {"sync_batch_norm": False}, r"global_batch_size=8: a worker would train on one shape"),
    ],
)
def test_a_share_that_is_too_small_is_refused(tmp_path, workers, train, message):
    small = job(tmp_path, train={"global_batch_size": 8, **train})
    with pytest.raises(ConfigError, match=message):
        small.check(range(workers, workers + 1))
