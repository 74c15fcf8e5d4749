"""What a training job leaves to the machine and to the protocol."""

from __future__ import annotations

import pytest

from recon_ray.cluster.training_job import resolve_precision
from recon_ray.tasks.embed.config import EmbedConfig
from recon_ray.tasks.pretrain.config import PretrainConfig


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
