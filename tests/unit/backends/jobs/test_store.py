"""The rules of job records that need no server. What Redis and S3 make of them: tests/integration/test_backends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from backends.jobs.records import JobRecord
from backends.jobs.store import JobStore, StudyStore, as_bytes, score_of
from backends.storage import key_names
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import ConflictError, NotFoundError
from tests.builders.records import record
from tests.builders.stores import MemoryBlobs, MemoryJobs


def standing(status: Status, tenant: str = "default") -> JobRecord:
    return record().model_copy(update={"status": status, "tenant": tenant})


def test_cancelling_a_queued_job_ends_it_at_once() -> None:
    queued = standing(Status.QUEUED)
    cancelled = MemoryJobs(queued).cancel(queued.id)
    assert (cancelled.status, cancelled.cancel_requested) == (Status.CANCELLED, False)
    assert cancelled.finished_at is not None


def test_cancelling_a_running_job_leaves_the_end_to_its_worker() -> None:
    running = standing(Status.RUNNING)
    jobs = MemoryJobs(running)
    for _ in range(2):  # who asks twice is told the same
        asked = jobs.cancel(running.id)
        assert (asked.status, asked.cancel_requested, asked.finished_at) == (Status.RUNNING, True, None)


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED, Status.CANCELLED])
def test_a_job_that_has_ended_is_not_cancelled(status: Status) -> None:
    ended = standing(status)
    jobs = MemoryJobs(ended)
    with pytest.raises(ConflictError, match=f"already ended: {status}"):
        jobs.cancel(ended.id)
    assert jobs.get(ended.id) == ended


def test_a_job_of_another_tenant_is_not_cancelled_and_not_even_there() -> None:
    queued = standing(Status.QUEUED, tenant="team")
    jobs = MemoryJobs(queued)
    with pytest.raises(NotFoundError, match=f"there is no analysis {queued.id}"):
        jobs.cancel(queued.id, tenant="default")
    assert jobs.get(queued.id, "team").status is Status.QUEUED


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING])
def test_a_job_that_has_not_ended_is_not_removed_from_either_store(status: Status) -> None:
    going, blobs = standing(status), MemoryBlobs()
    blobs.put(key_names.record_object(key_names.JOBS, going.owned), b"{}", "application/json")
    with pytest.raises(ConflictError, match=f"the analysis is {status}; cancel it first"):
        JobStore(cast(redis.Redis, None), blobs).remove(going)
    assert list(blobs.objects) == [key_names.record_object(key_names.JOBS, going.owned)]


def test_indexes_of_each_kind_and_status_and_of_all_are_apart() -> None:
    stores = [kind(cast(redis.Redis, None), MemoryBlobs()) for kind in (JobStore, StudyStore)]
    names = {store.index_name(tenant, one) for store in stores for tenant in ("a", "b") for one in (None, *Status)}
    assert len(names) == 2 * 2 * (1 + len(Status))


RECORD = record()
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


@given(MOMENTS, st.integers(0, 10**12))
def test_a_later_job_never_stands_before_an_earlier_one(made: datetime, microseconds: int) -> None:
    earlier = RECORD.model_copy(update={"created_at": made})
    later = earlier.model_copy(update={"created_at": made + timedelta(microseconds=microseconds)})
    assert abs(score_of(later) - score_of(earlier) - microseconds) <= 1
    assert score_of(later) >= score_of(earlier)
    assert float(score_of(later)) == score_of(later)  # Redis keeps scores as doubles


def test_a_client_that_decodes_answers_is_noticed() -> None:
    assert as_bytes(b"x") == b"x"
    with pytest.raises(TypeError, match="Redis returned str, expected bytes"):
        as_bytes("x")
