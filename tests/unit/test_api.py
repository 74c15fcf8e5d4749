import subprocess
import sys

import pytest
import torch

import recon_ray
from recon_ray.cluster.train import last_record, train_here
from recon_ray.errors import CheckpointError
from recon_ray.models.classifier import Classifier
from recon_ray.tasks.pretrain.job import make_task, training_job
from recon_ray.tasks.run import start_run
from recon_ray.tasks.run_figures import draw_pretraining
from recon_ray.weights.find import find_weights
from recon_ray.weights.load import encoder_sizes, initialize
from recon_ray.weights.weight_files import save_reference


@pytest.fixture(scope="module")
def finished_run(tiny_config_in, tiny_prepared, tmp_path_factory):
    config = tiny_config_in(tmp_path_factory.mktemp("runs"))
    run = start_run("pretrain", config, label="test")
    train_here(training_job(run, config, tiny_prepared, make_task(config, tiny_prepared)))
    return run.folder


def test_importing_the_package_loads_neither_ray_nor_torch_and_using_it_no_ray():
    code = "import recon_ray, sys; assert not {'ray', 'torch'} & sys.modules.keys(), 'loaded'"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "import recon_ray, sys, torch; m = recon_ray.create_model('nano');"
        "recon_ray.embed(m, torch.randn(2, 64, 3)); assert 'ray' not in sys.modules, 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_presets_and_tasks_are_listed():
    assert {"nano", "tiny", "small", "base"} <= set(recon_ray.presets()["presets"])
    tasks = {"pretrain", "classify", "zeroshot", "embed", "svm", "partseg", "twotower"}
    assert tasks <= set(recon_ray.presets()["tasks"])


@pytest.mark.parametrize(
    ("task", "arguments", "shape"),
    [
        ("classify", {"num_classes": 5}, (2, 5)),
        ("embed", {}, (2, 192)),
        ("partseg", {}, (2, 64, 50)),
        ("twotower_classify", {"num_classes": 5, "stream": "CMC"}, (2, 5)),
    ],
)
def test_a_model_of_every_task_can_be_made(task, arguments, shape):
    model = recon_ray.create_model("nano", task=task, num_groups=16, **arguments).eval()
    given = (torch.tensor([0, 3]),) if task == "partseg" else ()
    assert model(torch.randn(2, 64, 3), *given).shape == shape
    assert model.encoder.norm.weight.shape == (96,)


def test_unknown_names_missing_arguments_and_other_models_are_refused():
    with pytest.raises(TypeError, match="num_classes"):
        recon_ray.create_model("nano", task="classify")
    with pytest.raises(TypeError, match="decoder_depth"):
        recon_ray.create_model("nano", task="embed", decoder_depth=2)
    with pytest.raises(ValueError, match="unknown preset 'giant'"):
        recon_ray.create_model("giant")
    message = "task 'detect' is unknown; choose one of pretrain, classify"
    with pytest.raises(ValueError, match=message):
        recon_ray.create_model("nano", task="detect")
    with pytest.raises(TypeError, match="TwoTower has no features of the linear probes"):
        recon_ray.embed(recon_ray.create_model("nano", task="twotower"), torch.randn(2, 64, 3))


def test_a_run_gives_the_models_it_holds_and_no_random_ones(finished_run):
    whole = recon_ray.load_model(finished_run.local)
    for task in ("zeroshot", "svm", "embed"):
        model = recon_ray.load_model(finished_run.local, task=task)
        assert not hasattr(model, "decoder")
        points = torch.randn(3, 64, 3)
        assert torch.equal(recon_ray.embed(model, points), recon_ray.embed(whole, points))
        assert torch.equal(model.encode_text(points), whole.encode_text(points))
    with pytest.raises(CheckpointError, match="would stay random"):
        recon_ray.load_model(finished_run.local, task="classify", num_classes=4)
    with pytest.raises(CheckpointError, match="does not record num_classes"):
        recon_ray.load_model(finished_run.local, task="classify")
    with pytest.raises(CheckpointError, match="recon model, which cannot start a twotower model"):
        recon_ray.load_model(finished_run.local, task="twotower")


def test_a_run_and_its_export_give_the_same_start(finished_run, tmp_path):
    own = find_weights(finished_run.local)
    save_reference(tmp_path / "w.pth", own)
    exported = find_weights(tmp_path / "w.pth", **encoder_sizes(own))
    models = []
    for weights in (own, exported):
        torch.manual_seed(0)
        model = Classifier(num_classes=3, **encoder_sizes(weights))
        initialize(model, weights)
        models.append(model.state_dict())
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(64, 3), r"points have shape \(64, 3\); give \(B, N, 3\)"),
        (torch.zeros(0, 64, 3), r"points have shape \(0, 64, 3\)"),
        (torch.stack([torch.zeros(64, 3), torch.full((64, 3), float("nan"))]), "cloud 1 has point"),
    ],
)
def test_what_is_no_cloud_is_refused(points, message):
    with pytest.raises(ValueError, match=message):
        recon_ray.embed(recon_ray.create_model("nano"), points)


@pytest.mark.parametrize("where", ["", "checkpoints", "checkpoints/step-00000012"])
def test_a_trained_model_is_loaded_with_its_architecture(finished_run, where):
    model = recon_ray.load_model(finished_run.local / where)
    points = torch.randn(3, 64, 3)
    features = recon_ray.embed(model, points)
    assert features.shape == (3, 2 * 24)
    assert not model.training
    assert torch.allclose(features, recon_ray.embed(model, points, batch_size=1), atol=1e-5)
    # clouds are centered and scaled: where they lie and how large they are has no effect
    assert torch.allclose(features, recon_ray.embed(model, 5 * points + 3), atol=1e-3)


def test_a_folder_without_checkpoint_is_said_so(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint there; give a run folder"):
        recon_ray.load_model(tmp_path)


def test_a_finished_run_is_drawn(finished_run, tiny_prepared, tiny_config):
    draw_pretraining(finished_run, tiny_prepared, tiny_config)
    for name in ("curves.png", "reconstructions.png"):
        assert (finished_run.local / "figures" / name).read_bytes().startswith(b"\x89PNG")


def test_the_last_record_skips_half_written_lines_and_evaluations(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_record(path) == {}
    path.write_text('{"step": 1, "train/loss": 2}\n{"step": 1, "val/x": 1}\n{"step": 2, "tra')
    assert last_record(path) == {"step": 1, "train/loss": 2}
