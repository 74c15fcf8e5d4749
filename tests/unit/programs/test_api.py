import subprocess
import sys

import pytest
import torch

import recon_ray
from recon_ray.cluster.progress import last_record
from recon_ray.cluster.trainer import train_here
from recon_ray.errors import CheckpointError
from recon_ray.programs.figures import draw_pretraining
from recon_ray.programs.pretrain import make_task, training_job
from recon_ray.programs.run import start_run


@pytest.fixture
def finished_run(tiny_config, tiny_prepared):
    task = make_task(tiny_config, tiny_prepared)
    run = start_run("pretrain", tiny_config, label="test")
    train_here(training_job(run, tiny_config, tiny_prepared, task))
    return run.folder


def test_importing_the_package_loads_neither_ray_nor_torch():
    code = "import recon_ray, sys; assert not {'ray', 'torch'} & sys.modules.keys(), 'loaded'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_using_the_api_does_not_load_ray():
    code = (
        "import recon_ray, sys, torch; m = recon_ray.create_model('nano');"
        "recon_ray.embed(m, torch.randn(2, 64, 3)); assert 'ray' not in sys.modules, 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_presets_and_tasks_are_listed():
    assert {"nano", "tiny", "small", "base"} <= set(recon_ray.presets()["presets"])
    assert "pretrain" in recon_ray.presets()["tasks"]


@pytest.mark.parametrize("where", ["", "checkpoints", "checkpoints/step-00000012"])
def test_a_trained_model_is_loaded_with_its_architecture(finished_run, where):
    model = recon_ray.load_model(finished_run.local / where)
    points = torch.randn(3, 64, 3)
    features = recon_ray.embed(model, points)
    assert features.shape == (3, 2 * 24)
    assert not model.training
    assert torch.equal(features, recon_ray.embed(model, points, batch_size=1)) or torch.allclose(
        features, recon_ray.embed(model, points, batch_size=1), atol=1e-5
    )
    # clouds are centered and scaled: where they lie and how large they are has no effect
    assert torch.allclose(features, recon_ray.embed(model, 5 * points + 3), atol=1e-3)


def test_a_folder_without_checkpoint_is_said_so(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint there; give a run folder"):
        recon_ray.load_model(tmp_path)


def test_unknown_presets_and_tasks_are_refused():
    with pytest.raises(ValueError, match="unknown preset 'giant'"):
        recon_ray.create_model("giant")
    with pytest.raises(ValueError, match="task 'detect' is unknown; choose one of pretrain"):
        recon_ray.create_model("nano", task="detect")


def test_a_finished_run_is_drawn(finished_run, tiny_prepared, tiny_config):
    draw_pretraining(finished_run, tiny_prepared, tiny_config)
    for name in ("curves.png", "reconstructions.png"):
        assert (finished_run.local / "figures" / name).read_bytes().startswith(b"\x89PNG")


def test_the_last_record_skips_half_written_lines_and_evaluations(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_record(path) == {}
    path.write_text('{"step": 1, "train/loss": 2}\n{"step": 1, "val/x": 1}\n{"step": 2, "tra')
    assert last_record(path) == {"step": 1, "train/loss": 2}
