"""What the workers may reserve, against clusters that exist on paper only."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest
import ray

from recon_ray.cluster.placement import WorkerPlan, plan_workers
from recon_ray.cluster.session import ray_session
from recon_ray.config.sections.common import ClusterSection
from recon_ray.errors import ConfigError
from recon_ray.sweeps.config import TrialSection
from recon_ray.sweeps.trial_folders import TrialFolders
from recon_ray.sweeps.trial_placement import DRIVER_CPUS, TrialJob, TrialPlan, plan_trials

Node = dict[str, float]


@pytest.fixture
def cluster(monkeypatch):
    """Make Ray describe a cluster of these nodes, and a dead one besides."""

    def describe(*nodes: Node) -> None:
        total: Node = {}
        for node in nodes:
            for kind, amount in node.items():
                total[kind] = total.get(kind, 0) + amount
        described = [{"Alive": True, "Resources": node} for node in nodes]
        described.append({"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}})
        monkeypatch.setattr(ray, "cluster_resources", lambda: total)
        monkeypatch.setattr(ray, "nodes", lambda: described)

    return describe


def plan(*, mode: str = "shared", device: str = "auto", **options: Any) -> WorkerPlan:
    section = ClusterSection(**options)
    return plan_workers(section, reads_during_training=mode == "stream", device=device)


# --- Reading while the workers run: what hung in measurements, and what worked --------------------
@pytest.mark.parametrize(
    ("cpus", "each", "left"), [(2, 1, "0 of 2"), (2, 0.75, "0.5 of 2"), (3, 1.25, "0.5 of 3")]
)
def test_reading_without_a_whole_free_cpu_is_refused(cluster, cpus, each, left):
    cluster({"CPU": cpus})
    message = rf"data.mode=stream needs one free CPU.*2 workers x {each:g} CPUs leave {left}"
    with pytest.raises(ConfigError, match=message):
        plan(workers=2, cpus_per_worker=each, mode="stream")


@pytest.mark.parametrize(
    ("cpus", "each", "mode"),
    [(2, 0.5, "stream"), (4, 1, "stream"), (2, 1, "cached"), (2, 1, "shared"), (1, 0.5, "shared")],
)
def test_what_leaves_a_free_cpu_or_reads_nothing_is_accepted(cluster, cpus, each, mode):
    cluster({"CPU": cpus})
    found = plan(workers=2, cpus_per_worker=each, mode=mode)
    assert (found.min_workers, found.max_workers, found.cpus_per_worker) == (2, 2, each)
    assert (found.cpus, found.nodes, found.is_elastic) == (cpus, 1, False)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("cpus", [2.0, 4.0, 6.0])
def test_the_suggested_cpus_per_worker_work(cluster, workers, cpus):
    cluster({"CPU": cpus})
    with pytest.raises(ConfigError) as refused:
        plan(workers=workers, cpus_per_worker=cpus / workers, mode="stream")
    suggested = str(refused.value).partition("cluster.cpus_per_worker=")[2].partition(",")[0]
    plan(workers=workers, cpus_per_worker=float(suggested), mode="stream")


def test_the_free_cpu_has_to_be_on_one_node_and_fractions_add_up(cluster):
    cluster({"CPU": 1})
    with pytest.raises(ConfigError, match=r"leave 0 of 1: set data.mode=shared$"):
        plan(workers=1, mode="stream")
    assert plan(workers=10, cpus_per_worker=0.1).max_workers == 10
    cluster({"CPU": 1.5}, {"CPU": 1.5})
    message = r"leave 1 of 3, in parts on 2 nodes: set .*data.mode=shared"
    with pytest.raises(ConfigError, match=message):
        plan(workers=2, mode="stream")
    cluster({"CPU": 2}, {"CPU": 1})
    assert plan(workers=2, mode="stream").nodes == 2


def test_an_elastic_run_is_warned_where_growing_takes_the_last_cpu(cluster, caplog):
    cluster({"CPU": 4})
    with caplog.at_level(logging.WARNING, logger="recon_ray"):
        found = plan(workers=(1, 3), mode="stream")
        assert caplog.text == ""
        plan(workers=(1, 8), mode="stream")
    assert (found.min_workers, found.max_workers, found.is_elastic) == (1, 3, True)
    assert "cluster.workers=[1, 8]: at 4 workers no CPU is left to read with" in caplog.text


def test_workers_that_compute_together_have_a_gpu_each(cluster):
    cluster({"CPU": 4, "GPU": 2})
    message = r"cluster\.gpus_per_worker=0\.5: 2 workers that compute together cannot share a GPU"
    for workers in (2, (1, 2)):
        with pytest.raises(ConfigError, match=message):
            plan(workers=workers, gpus_per_worker=0.5)
    assert plan(workers=1, gpus_per_worker=0.5).gpus_per_worker == 0.5
    assert plan(workers=2, gpus_per_worker=1).gpus_per_worker == 1
    pool = ClusterSection(workers=2, gpus_per_worker=0.5)
    found = plan_workers(pool, reads_during_training=False, device="auto", exchanges=False)
    assert found.gpus_per_worker == 0.5


# --- More than there is --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("nodes", "options", "message"),
    [
        (
            [{"CPU": 4}],
            {"workers": 8},
            r"cluster.workers=8: they reserve 8 CPUs \(1 each\), the cluster has 4; lower "
            r"cluster.workers to 4 or cluster.cpus_per_worker$",
        ),
        (
            [{"CPU": 2}],
            {"workers": 1, "cpus_per_worker": 4},
            r"they reserve 4 CPUs \(4 each\), the cluster has 2; lower cluster.cpus_per_worker$",
        ),
        (
            [{"CPU": 8, "GPU": 1}],
            {"workers": 2, "gpus_per_worker": 1},
            r"they reserve 2 GPUs \(1 each\), the cluster has 1; lower cluster.workers to 1 or "
            r"cluster.gpus_per_worker$",
        ),
        (
            [{"CPU": 8}],
            {"workers": (2, 4), "gpus_per_worker": 1},
            r"cluster.workers=2: they reserve 2 GPUs \(1 each\), the cluster has 0; lower "
            r"cluster.gpus_per_worker$",
        ),
        (
            [{"CPU": 1}, {"CPU": 1}],
            {"workers": 1, "cpus_per_worker": 2},
            r"cluster.workers=1: each needs 2 CPUs on one node, and the 2 nodes have room for 0 of "
            r"them; lower cluster.cpus_per_worker$",
        ),
        (
            [{"CPU": 8}, {"CPU": 1, "GPU": 2}],
            {"workers": 2, "gpus_per_worker": 1},
            r"cluster.workers=2: each needs 1 CPUs and 1 GPUs on one node, and the 2 nodes have "
            r"room for 1 of them; lower cluster.workers to 1 or",
        ),
        ([{"CPU": 8}], {"workers": 2, "device": "cuda"}, "runtime.device=cuda: .* 0 GPUs"),
        ([{}], {"workers": 1}, "the cluster has 0; lower cluster.cpus_per_worker"),
    ],
)
def test_more_than_the_cluster_has_is_refused(cluster, nodes, options, message):
    cluster(*nodes)
    with pytest.raises(ConfigError, match=message):
        plan(**options)


@pytest.mark.parametrize(
    ("gpus", "device", "each"),
    [(2, "auto", 1.0), (1, "auto", 0.0), (2, "cpu", 0.0), (2, "cuda", 1.0)],
)
def test_each_worker_gets_a_gpu_where_there_are_enough(cluster, gpus, device, each):
    cluster({"CPU": 8, "GPU": gpus})
    assert plan(workers=2, device=device).gpus_per_worker == each


@pytest.mark.parametrize(
    ("gpus", "options", "warned"),
    [
        (1, {"workers": 2}, True),
        (1, {"workers": (1, 2)}, False),
        (0, {"workers": 2}, False),
        (1, {"workers": 2, "device": "cpu"}, False),
        (1, {"workers": 2, "gpus_per_worker": 0}, False),
    ],
)
def test_gpus_that_are_too_few_are_not_left_out_silently(cluster, caplog, gpus, options, warned):
    cluster({"CPU": 8, "GPU": gpus})
    with caplog.at_level(logging.WARNING, logger="recon_ray"):
        plan(**options)
    warning = "runtime.device=auto: the cluster has 1 GPUs for 2 workers, so that these take none"
    assert (warning in caplog.text) == warned
    assert caplog.text == "" or warned


# --- Trials --------------------------------------------------------------------------------------
def trials(count: int = 8, *, inner: ClusterSection | None = None, **options: Any) -> TrialPlan:
    job = TrialJob(
        run=lambda *_: {}, folders=TrialFolders("runs"), section="sweep",
        options=TrialSection(**options), metric="accuracy", inner=inner,
    )  # fmt: skip
    return plan_trials(job, ClusterSection(address="127.0.0.1:1"), count)


def test_a_trial_takes_what_it_reserves_from_one_node(cluster):
    cluster({"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 1})
    assert trials(gpus_per_trial=0.5).at_once == 4
    assert trials(gpus_per_trial=1).at_once == 2
    assert trials(gpus_per_trial=0, cpus_per_trial=3).at_once == 2
    message = r"sweep.gpus_per_trial: a trial needs 1 x \(1 CPUs, 2 GPUs\), .* 2 nodes .* for 0;"
    with pytest.raises(ConfigError, match=message):
        trials(gpus_per_trial=2)
    with pytest.raises(ConfigError, match=r"sweep.cpus_per_trial: a trial needs 1 x \(5 CPUs"):
        trials(gpus_per_trial=0, cpus_per_trial=5)


def test_the_workers_of_a_trial_take_gpus_too(cluster):
    cluster({"CPU": 8, "GPU": 4})
    assert trials(inner=ClusterSection(workers=2)).at_once == 2
    assert trials(inner=ClusterSection(workers=2, gpus_per_worker=0)).at_once == 3
    assert trials(inner=ClusterSection(workers=2, gpus_per_worker=0.25)).at_once == 3
    plan = trials(inner=ClusterSection(workers=2))
    assert (plan.cpus, plan.gpus) == (DRIVER_CPUS, 0.0)
    cluster({"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 3})
    with pytest.raises(ConfigError, match=r"config.cluster.workers: .* 2 x \(1 CPUs, 2 GPUs\)"):
        trials(inner=ClusterSection(workers=2, gpus_per_worker=2))
    with pytest.raises(ConfigError, match=r"config.cluster.workers: a trial reserves 6 GPUs"):
        trials(inner=ClusterSection(workers=6, gpus_per_worker=1))


def test_the_driver_of_a_trial_may_take_the_place_of_a_worker(cluster):
    inner = ClusterSection(workers=2)
    cluster({"CPU": 2}, {"CPU": 2.5})
    assert trials(inner=inner).at_once == 1  # a driver on the first leaves one place there
    cluster({"CPU": 2}, {"CPU": 1.5})
    with pytest.raises(ConfigError, match=r"config.cluster.workers: a trial needs 3 x"):
        trials(inner=ClusterSection(workers=3))


# --- Joining -------------------------------------------------------------------------------------
def test_an_address_at_which_nothing_answers_is_named_at_once(monkeypatch):
    monkeypatch.setattr("recon_ray.cluster.session.prepare_environment", lambda options: None)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray would try for minutes"))
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        message = rf"cluster.address={address}: no Ray cluster answers there \(.*\); start"
        with (
            pytest.raises(ConfigError, match=message),
            ray_session(ClusterSection(address=address)),
        ):
            pytest.fail("the session began")


# --- Threads --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("address", "nodes", "workers", "threads"),
    [
        ("auto", [64, 64], 4, 32),  # what the nodes report, whatever the driver has
        ("auto", [0, 8], 3, 2),
        (None, [6], 2, 1),  # a Ray of our own is started with more CPUs than there are
        (None, [6], 1, 3),
        ("auto", [1.5], 1, 1),
    ],
)
def test_workers_share_the_cpus(cluster, monkeypatch, address, nodes, workers, threads):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("recon_ray.cluster.placement.cpu_count", lambda: 3)
    cluster(*({"CPU": float(cpus)} for cpus in nodes))
    assert plan(workers=workers, address=address).threads_per_worker == threads


def test_a_ray_of_our_own_has_the_cpus_that_the_job_may_use(monkeypatch):
    started = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("recon_ray.cluster.session.cpu_count", lambda: 3)
    monkeypatch.setattr("recon_ray.cluster.session.require_token", lambda: None)
    monkeypatch.setattr("recon_ray.cluster.session.prepare_environment", lambda options: None)
    monkeypatch.setattr("recon_ray.cluster.session.LOCAL_CLUSTER", {})
    monkeypatch.setattr("recon_ray.cluster.session.keep_to_loopback", lambda: None)
    monkeypatch.setattr(ray, "init", lambda **options: started.update(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with ray_session(ClusterSection(workers=1)):
        pass
    assert started["num_cpus"] == 3
