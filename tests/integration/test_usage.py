"""Usage on a real Redis and a real S3: what is counted outlives Redis, and objects are measured."""

from __future__ import annotations

from threading import Thread

import pytest
import redis

from backends.deployment import Deployment
from backends.storage import key_names
from backends.usage import Seconds, month_of
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import UnavailableError
from tests.builders.records import record
from workers.lease_keeper import leased

NOVEMBER = 1_795_900_000.0  # 2026-11-28


@pytest.fixture
def emptied(deployment: Deployment, valkey: redis.Redis) -> Deployment:
    deployment.blobs.delete_all("")
    return deployment


def test_seconds_are_summed_by_tenant_month_and_device(emptied: Deployment) -> None:
    usage = emptied.usage
    for tenant, seconds in (("a", 1.5), ("a", 2.0), ("b", 4.0)):
        usage.add(tenant, "gpu", seconds, NOVEMBER)
    usage.add("a", "cpu", 8.0, NOVEMBER)
    usage.add("a", "gpu", 100.0, NOVEMBER + 30 * 86_400)
    assert month_of(NOVEMBER) == "2026-11"
    assert [usage.seconds(tenant, "2026-11") for tenant in "abc"] == [
        Seconds(8.0, 3.5),
        Seconds(0.0, 4.0),
        Seconds(0, 0),
    ]
    assert usage.seconds("a", "2026-12") == Seconds(0.0, 100.0)


def test_what_was_saved_is_there_again_when_redis_has_lost_everything(emptied: Deployment, valkey: redis.Redis) -> None:
    emptied.usage.add("a", "gpu", 60.0, NOVEMBER)
    assert emptied.usage.save() == 1
    assert emptied.usage.save() == 0
    valkey.flushdb()
    emptied.usage.add("a", "gpu", 5.0, NOVEMBER)
    assert emptied.usage.seconds("a", "2026-11") == Seconds(0.0, 65.0)
    emptied.usage.save()
    valkey.flushdb()
    assert emptied.usage.seconds("a", "2026-11") == Seconds(0.0, 65.0)


def test_several_processes_take_what_was_saved_over_once(emptied: Deployment, valkey: redis.Redis) -> None:
    emptied.usage.add("a", "cpu", 100.0, NOVEMBER)
    emptied.usage.save()
    valkey.flushdb()

    def count() -> None:
        for _ in range(20):
            emptied.usage.add("a", "cpu", 1.0, NOVEMBER)
            emptied.usage.seconds("a", "2026-11")

    threads = [Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert emptied.usage.seconds("a", "2026-11") == Seconds(180.0, 0.0)


def test_an_outage_of_s3_is_told_and_forgets_nothing(
    emptied: Deployment, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied.usage.add("a", "cpu", 100.0, NOVEMBER)
    emptied.usage.save()
    valkey.flushdb()

    def away(*_: object) -> bytes:
        raise UnavailableError("S3 could not be reached")

    with monkeypatch.context() as patched:
        patched.setattr(emptied.blobs, "get", away)
        emptied.usage.add("a", "cpu", 1.0, NOVEMBER)  # a worker's heartbeat waits for no S3
        with pytest.raises(UnavailableError):
            emptied.usage.seconds("a", "2026-11")
        with pytest.raises(UnavailableError):
            emptied.usage.save()
    assert emptied.usage.seconds("a", "2026-11") == Seconds(101.0, 0.0)


def test_objects_are_measured_once_in_a_while(emptied: Deployment, valkey: redis.Redis) -> None:
    assert emptied.usage.stored_bytes("a") is None
    for name, size in (("a", 1000), ("a", 24), ("b", 7)):
        emptied.blobs.put(f"{key_names.tenant_prefix(name)}uploads/{size}", b"x" * size, "")
    assert emptied.usage.measure()
    assert (emptied.usage.stored_bytes("a"), emptied.usage.stored_bytes("b")) == (1024, 7)
    assert emptied.usage.tenants() == ["a", "b"]
    emptied.blobs.put(f"{key_names.tenant_prefix('a')}uploads/more", b"x", "")
    assert not emptied.usage.measure()
    emptied.blobs.delete_all(key_names.tenant_prefix("b"))
    valkey.delete(key_names.STORAGE_MEASURED)
    assert emptied.usage.measure()
    assert (emptied.usage.stored_bytes("a"), emptied.usage.stored_bytes("b")) == (1025, None)


def test_a_worker_counts_while_it_holds_a_job(emptied: Deployment) -> None:
    job = record().model_copy(update={"status": Status.RUNNING, "tenant": "search"})
    emptied.jobs.submit(job)
    with leased(emptied, emptied.jobs, job.id) as lease:
        assert lease is not None
    counted = emptied.usage.seconds("search", month_of())
    assert counted.cpu > 0
    assert counted.gpu == 0
