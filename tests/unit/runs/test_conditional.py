"""The lease on a store that speaks S3: one of several jobs gets it, and keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from recon_ray.errors import ConfigError
from recon_ray.runs import conditional
from recon_ray.runs.conditional import conditional_object
from recon_ray.runs.lease import Holder, Lease, LeaseFile

pytest.importorskip("boto3")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URI of a run on moto's server."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "nobody")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        uri = f"s3://bucket/run?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        conditional._client(uri).create_bucket(Bucket="bucket")
        yield uri
    server.stop()


def holder(key: str) -> Holder:
    return Holder(key, "node7", "another machine", 4711, "1")


@pytest.fixture
def file(bucket: str) -> Iterator[LeaseFile]:
    file = LeaseFile(bucket)
    yield file
    file._fs.delete_file(file.path)


def test_of_two_jobs_that_look_at_the_same_time_one_gets_the_lease(bucket, file, monkeypatch):
    other = LeaseFile(bucket)
    assert other.read() is None
    monkeypatch.setattr(other, "read", lambda: None)  # it looked before the first one wrote
    assert file.create(holder("first"), None)
    assert not other.create(holder("second"), None)
    assert LeaseFile(bucket).read() == holder("first")


def test_of_two_jobs_that_replace_a_dead_one_one_gets_the_lease(bucket, file, monkeypatch):
    stale = holder("stale")
    file.create(stale, None)
    slower = LeaseFile(bucket)
    seen = slower.read()
    assert file.create(holder("faster"), stale)
    monkeypatch.setattr(slower, "read", lambda: seen)
    assert not slower.create(holder("slower"), stale)
    monkeypatch.undo()
    assert not slower.create(holder("slower"), stale)
    assert slower.read() == holder("faster")


def test_a_beat_never_replaces_the_lease_of_a_job_that_has_taken_over(bucket, file, monkeypatch):
    own = holder("own")
    file.create(own, None)
    file.own = own
    assert file.renew() is None
    assert LeaseFile(bucket).read() == replace(own, beat=1)
    read = file.read

    def read_and_lose() -> Holder | None:
        found = read()
        monkeypatch.undo()  # of this function
        other = LeaseFile(bucket)
        assert other.create(holder("other"), found)
        return found

    monkeypatch.setattr(file, "read", read_and_lose)
    assert file.renew() == holder("other")
    assert LeaseFile(bucket).read() == holder("other")


def test_a_lease_is_taken_and_released(bucket):
    lease = Lease(bucket, "run")
    lease.take()
    with pytest.raises(ConfigError, match="another job has begun it in the same moment"):
        Rival(bucket, "run").claim()
    lease.release()
    assert LeaseFile(bucket).read() is None


class Rival(Lease):
    """A job that has looked before the other one wrote its lease."""

    def check(self) -> None:
        return None


def test_an_answer_that_is_an_error_is_an_oserror(bucket):
    file = LeaseFile(bucket.replace("bucket/", "absent/"))
    with pytest.raises(OSError, match="NoSuchBucket"):
        file.write(holder("own"))


def test_other_stores_and_machines_without_boto3_use_heartbeats_alone(monkeypatch):
    assert conditional_object("gs://bucket/run/lease.json") is None
    monkeypatch.setattr(conditional, "find_spec", lambda name: None)
    assert conditional_object("s3://bucket/run/lease.json") is None
