"""Runs on an object store that speaks S3: moto's server, on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_cluster import free_ports
from pyarrow import fs as pafs

from recon_ray.config.help import dump_yaml
from recon_ray.data.format.prepared import PreparedSet
from recon_ray.data.prepare.build_set import prepare
from recon_ray.data.prepare.shard_plan import PrepareOptions
from recon_ray.data.sources.procedural.synthetic import SyntheticSource
from recon_ray.runs.folder import RunFolder
from recon_ray.storage import Place, join, open_filesystem
from recon_ray.sweeps.config import SweepConfig
from recon_ray.sweeps.job import sweep
from recon_ray.tasks.cache_teachers.config import CacheTeachersConfig
from recon_ray.tasks.classify.config import EvaluateConfig, FinetuneConfig
from recon_ray.tasks.classify.evaluate_job import evaluate_classifier
from recon_ray.tasks.classify.finetune_job import finetune
from recon_ray.tasks.embed.config import EmbedConfig
from recon_ray.tasks.pretrain.config import PretrainConfig
from recon_ray.tasks.pretrain.job import pretrain
from recon_ray.tasks.registry import JOBS, Job, JobResult
from recon_ray.tasks.retrieve.config import RetrieveConfig

ROOT = Path(__file__).resolve().parents[2]
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``run.storage`` in a bucket of a server of this machine's own."""
    command = shutil.which("moto_server", path=str(Path(sys.executable).parent))
    if command is None:  # one of another Python may be any version
        pytest.skip("moto_server is not installed: pip install 'moto[s3]' flask flask-cors")
    (port,) = free_ports(1)
    log = (tmp_path_factory.mktemp("moto") / "log").open("w")
    server = subprocess.Popen([command, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    try:
        _wait_for(server, port)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in CREDENTIALS.items():
                patch.setenv(name, value)
            address = {"endpoint_override": f"127.0.0.1:{port}", "scheme": "http"}
            pafs.S3FileSystem(allow_bucket_creation=True, **address).create_dir("bucket")
            yield f"s3://bucket/runs?endpoint_override=http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
        log.close()


def _wait_for(server: subprocess.Popen, port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("the server did not answer")


@pytest.fixture(scope="module")
def stored(storage: str, tiny_prepared: PreparedSet) -> PreparedSet:
    """The tiny set, prepared in the bucket: the bytes are those in a folder."""
    source = SyntheticSource(
        train_per_class=8, test_per_class=4, categories=("chair", "lamp", "mug")
    )
    options = PrepareOptions(num_points=96, views=2, image_size=32, samples_per_shard=7)
    place = Place(storage.replace("/runs?", "/set?"))
    assert prepare(source, place, options) == tiny_prepared.manifest
    assert prepare(source, place, options) == tiny_prepared.manifest  # finished
    found = PreparedSet.open(place)
    found.verify()
    assert found.read("train", views=True).equals(tiny_prepared.read("train", views=True))
    return found


def files(storage: str, run: str) -> set[str]:
    """Names of the objects of a run, without the numbers in those of TensorBoard."""
    filesystem, root = open_filesystem(join(storage, run))
    found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    names = [i.path.removeprefix(f"{root}/") for i in found if i.type == pafs.FileType.File]
    return {name.partition(".tfevents")[0] for name in names}


def whole(result: JobResult) -> dict[str, float]:
    """The metrics of a job that has drawn its figures too."""
    assert result.failure is None
    where = str(result.result_path)
    filesystem, path = open_filesystem(where)
    with filesystem.open_input_stream(path) as stream:
        return json.loads(stream.read())["metrics"]


def test_runs_on_an_object_store_start_from_each_other(
    storage: str, tiny_config: PretrainConfig, stored: PreparedSet, caplog
) -> None:
    start = tiny_config.model_copy(
        update={
            "run": tiny_config.run.model_copy(update={"storage": storage}),
            "data": tiny_config.data.model_copy(update={"path": str(stored.path)}),
            "train": tiny_config.train.model_copy(
                update={"steps": 3, "keep_every_steps": 1, "keep_checkpoints": 1}
            ),
            "eval": tiny_config.eval.model_copy(update={"enabled": False}),
        }
    )
    assert "loss_last" in whole(pretrain(Job("pretrain", start, {}, ())))
    own = {"config.yaml", "environment.json", "inputs.json", "metrics.jsonl", "result.json"}
    of_run = files(storage, "run")
    assert of_run >= {*own, "teachers.json", "figures/curves.png", "figures/reconstructions.png"}
    assert of_run >= {f"checkpoints/step-0000000{step}/MANIFEST.json" for step in (1, 2, 3)}
    assert "lease.json" not in of_run

    damaged = join(storage, "run", "checkpoints", "step-00000003", "model.pt")
    filesystem, path = open_filesystem(damaged)
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"half of it")
    data = {"path": str(stored.path), "num_points": 64}
    tuned = {
        "init_from": join(storage, "run"),
        "data": data,
        "train": {"epochs": 2, "global_batch_size": 8, "keep_checkpoints": 1},
        "optim": {"warmup_epochs": 1},
        "runtime": {"threads": 1},
    }
    here = {"run": {"name": "tuned", "storage": storage}, "cluster": {"workers": 0}}
    assert "accuracy" in whole(finetune(Job("finetune", FinetuneConfig(**here, **tuned), {}, ())))
    assert "model.pt is damaged" in caplog.text
    assert {name for name in files(storage, "tuned") if "MANIFEST" in name} == {
        "checkpoints/step-00000006/MANIFEST.json"
    }

    voted = EvaluateConfig(
        run={"name": "voted", "storage": storage},
        cluster={"workers": 0},
        init_from=join(storage, "tuned"),
        data={"path": data["path"]},
        eval={"votes": 2, "repeats": 2},
    )
    first = whole(evaluate_classifier(Job("evaluate", voted, {}, ())))
    assert files(storage, "voted") >= {
        "votes.json", "predictions.parquet", "figures/confusion.png",
    }  # fmt: skip
    assert whole(evaluate_classifier(Job("evaluate", voted, {}, ()))) == first

    for job, config in {"embed": EmbedConfig, "retrieve": RetrieveConfig}.items():
        found = config(
            run={"name": job, "storage": storage},
            cluster={"workers": 0},
            init_from=join(storage, "run"),
            data={"path": data["path"]},
        )
        assert whole(JOBS[job].load_main()(Job(job, found, {}, ())))
    assert "embeddings/train/part-00000-of-00004.parquet" in files(storage, "embed")

    swept = SweepConfig(
        run={"name": "swept", "storage": storage},
        cluster={"workers": 0},
        config={**tuned, "train": {**tuned["train"], "epochs": 1}},
        sweep={"seeds": 2},
    )
    assert "accuracy_std" in whole(sweep(Job("sweep", swept, {}, ())))
    of_sweep = files(storage, "swept")
    assert of_sweep >= {"report.html", "trials.parquet", "result.json"}
    assert of_sweep >= {f"trials/00{n}_seed-{n}/tensorboard/events.out" for n in (0, 1)}


def test_features_of_teachers_lie_in_the_set(
    storage: str, tiny_config: PretrainConfig, stored: PreparedSet
) -> None:
    names = {"image": {"name": "descriptor:32"}, "text": {"name": "descriptor:32"}}
    cached = CacheTeachersConfig(
        run={"name": "cached", "storage": storage},
        cluster={"workers": 0},
        data={"path": str(stored.path)},
        teacher=names,
    )
    assert whole(JOBS["cache_teachers"].load_main()(Job("cache_teachers", cached, {}, ())))
    image = tiny_config.teacher.image.model_copy(update={"mode": "cached", "augment": "reference"})
    for mode in ("shared", "stream"):
        start = tiny_config.model_copy(
            update={
                "run": tiny_config.run.model_copy(update={"storage": storage, "name": mode}),
                "data": tiny_config.data.model_copy(
                    update={"path": str(stored.path), "mode": mode}
                ),
                "teacher": tiny_config.teacher.model_copy(update={"image": image}),
                "eval": tiny_config.eval.model_copy(update={"enabled": False}),
            }
        )
        assert "loss_last" in whole(pretrain(Job("pretrain", start, {}, ())))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("mode", ["shared", "stream", "cached"])
def test_a_killed_driver_of_two_workers_goes_on_from_an_object_store(
    storage: str, tiny_config: PretrainConfig, stored: PreparedSet, tmp_path: Path, mode: str
) -> None:
    name = f"killed-{mode}"
    config = tiny_config.model_copy(
        update={
            "run": tiny_config.run.model_copy(update={"storage": storage, "name": name}),
            "data": tiny_config.data.model_copy(update={"path": str(stored.path), "mode": mode}),
            "cluster": tiny_config.cluster.model_copy(
                update={"workers": 2, "cpus_per_worker": 0.5}
            ),
            "train": tiny_config.train.model_copy(
                update={"epochs": 100, "commit_every_seconds": 1.0}
            ),
            "eval": tiny_config.eval.model_copy(update={"enabled": False}),
        }
    )
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    command = [sys.executable, str(ROOT / "jobs" / "pretrain.py"), str(tmp_path / "config.yaml")]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 240
        while not any("MANIFEST" in file for file in files(storage, name)):
            assert driver.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    assert "result.json" not in files(storage, name)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert files(storage, name) >= {"result.json", "figures/curves.png"}
    folder = RunFolder(join(storage, name))
    steps = [json.loads(line)["step"] for line in (folder.read("metrics.jsonl") or "").splitlines()]
    assert steps == list(range(1, 301))  # no gap, and nothing twice
    starts = [
        event["step"]
        for event in map(json.loads, (folder.read("events.jsonl") or "").splitlines())
        if event["event"] == "trains"
    ]
    assert len(starts) == 2
    assert starts[1] > 1
