"""What a tenant may use: each quota used up and not, and whose quota counts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from backends.usage import DEVICES, next_month
from layerdrift.contract.errors import QuotaError
from layerdrift.contract.usage import Quota
from service.use_cases import quotas
from service.use_cases.quotas import quota_of, require_job_quota, require_storage, usage_of
from tests.builders.records import record
from tests.builders.service import ServiceDeployment


def having(**quota: Any) -> ServiceDeployment:
    """A deployment with a quota for `default`, which has used 100 s of each device, 1,000 bytes and one open job."""
    made = ServiceDeployment(record(analysis_id="an_1"), quotas={"default": Quota(**quota)})
    for device in DEVICES:
        made.usage.add("default", device, 100.0)
    made.usage.stored["default"] = 1000
    return made


@pytest.mark.parametrize(
    "quota", [{}, {"gpu_seconds": 100.1}, {"cpu_seconds": 101}, {"open_jobs": 2}, {"storage_bytes": 1001}]
)
def test_below_its_quota_a_tenant_may_go_on(quota: dict[str, Any]) -> None:
    require_job_quota(having(**quota).given, "default")
    require_storage(having(**quota).given, "default")


@pytest.mark.parametrize(
    ("quota", "said"),
    [
        (
            {"gpu_seconds": 100},
            "the quota of GPU seconds is used up: 100 of 100 in 2026-11; it frees at 2026-12-01 00:00",
        ),
        ({"cpu_seconds": 0}, "the quota of CPU seconds is used up: 100 of 0 in 2026-11; it frees at 2026-12-01 00:00"),
        ({"open_jobs": 1}, "the quota of open jobs is used up: 1 of 1 are queued or running"),
        ({"storage_bytes": 1000}, "the quota of storage is used up: 1,000 of 1,000 bytes; it frees within ten minutes"),
    ],
)
def test_a_quota_that_is_used_up_says_what_how_much_and_when_it_frees(
    quota: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "month_of", lambda: "2026-11")
    with pytest.raises(QuotaError) as caught:
        require_job_quota(having(**quota).given, "default")
    assert said in caught.value.detail
    assert (caught.value.status, caught.value.kind) == (429, "quota")


def test_the_time_to_wait_is_that_until_the_month_ends() -> None:
    with pytest.raises(QuotaError) as caught:
        require_job_quota(having(gpu_seconds=1).given, "default")
    left = (usage_of(having().given, "default").resets_at - datetime.now(UTC)).total_seconds()
    assert caught.value.retry_after == pytest.approx(left, abs=5)


def test_so_many_jobs_at_once_count_together() -> None:
    deployment = having(open_jobs=4).given
    require_job_quota(deployment, "default", 3)
    with pytest.raises(QuotaError, match="1 of 4 are queued or running, and this makes 4 more"):
        require_job_quota(deployment, "default", 4)


def test_uploads_ask_for_storage_alone() -> None:
    require_storage(having(gpu_seconds=0, open_jobs=1).given, "default")
    with pytest.raises(QuotaError, match="storage"):
        require_storage(having(storage_bytes=10).given, "default")


def test_storage_that_was_not_measured_yet_keeps_nobody_out() -> None:
    deployment = having(storage_bytes=0)
    deployment.usage.stored.clear()
    require_job_quota(deployment.given, "default")
    assert usage_of(deployment.given, "default").storage_bytes is None


def test_a_tenant_that_is_not_named_has_everybodys_quota() -> None:
    deployment = ServiceDeployment(quotas={"*": Quota(open_jobs=3), "search": Quota(gpu_seconds=5)}).given
    assert quota_of(deployment, "search") == Quota(gpu_seconds=5)
    assert quota_of(deployment, "default") == Quota(open_jobs=3)


@pytest.mark.parametrize(("month", "after"), [("2026-11", (2026, 12)), ("2026-12", (2027, 1))])
def test_a_month_ends_when_the_next_one_begins(month: str, after: tuple[int, int]) -> None:
    assert next_month(month) == datetime(*after, 1, tzinfo=UTC)
