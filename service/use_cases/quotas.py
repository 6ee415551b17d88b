"""What a tenant has used, and whether it may use more. Knows no HTTP."""

from __future__ import annotations

from datetime import UTC, datetime

from backends.deployment import Deployment
from backends.usage import month_of, next_month
from layerdrift.contract.errors import QuotaError
from layerdrift.contract.usage import Quota, Usage

OPEN_JOBS_RETRY_SECONDS, STORAGE_RETRY_SECONDS = 30, 600
EVERYBODY = "*"
"""The tenant in the setting whose quota counts for all that are not named."""


def usage_of(deployment: Deployment, tenant: str) -> Usage:
    """Of this month."""
    month = month_of()
    seconds = deployment.usage.seconds(tenant, month)
    return Usage(
        tenant=tenant,
        month=month,
        gpu_seconds=round(seconds.gpu, 1),
        cpu_seconds=round(seconds.cpu, 1),
        storage_bytes=deployment.usage.stored_bytes(tenant),
        open_jobs=deployment.listing.open_count(tenant),
        quota=quota_of(deployment, tenant),
        resets_at=next_month(month),
    )


def quota_of(deployment: Deployment, tenant: str) -> Quota:
    """The tenant's own, or that of everybody."""
    quotas = deployment.settings.quotas
    return quotas.get(tenant) or quotas.get(EVERYBODY) or Quota()


def require_job_quota(deployment: Deployment, tenant: str, jobs: int = 1) -> None:
    """QuotaError where a tenant may not make so many further jobs now."""
    quota = quota_of(deployment, tenant)
    if quota == Quota():
        return
    used = usage_of(deployment, tenant)
    _require_seconds("GPU", used.gpu_seconds, quota.gpu_seconds, used)
    _require_seconds("CPU", used.cpu_seconds, quota.cpu_seconds, used)
    if quota.open_jobs is not None and used.open_jobs + jobs > quota.open_jobs:
        raise QuotaError(
            f"the quota of open jobs is used up: {used.open_jobs} of {quota.open_jobs} are queued or running, and this "
            f"makes {jobs} more; it frees when they end",
            OPEN_JOBS_RETRY_SECONDS,
        )
    _require_storage(used)


def require_storage(deployment: Deployment, tenant: str) -> None:
    """QuotaError where a tenant may store nothing more now."""
    if quota_of(deployment, tenant).storage_bytes is not None:
        _require_storage(usage_of(deployment, tenant))


def _require_seconds(device: str, used: float, allowed: float | None, usage: Usage) -> None:
    if allowed is None or used < allowed:
        return
    left = int((usage.resets_at - datetime.now(UTC)).total_seconds()) + 1
    raise QuotaError(
        f"the quota of {device} seconds is used up: {used:,.0f} of {allowed:,.0f} in {usage.month}; it frees at "
        f"{usage.resets_at:%Y-%m-%d %H:%M} UTC",
        left,
    )


def _require_storage(usage: Usage) -> None:
    allowed, used = usage.quota.storage_bytes, usage.storage_bytes
    if allowed is None or used is None or used < allowed:
        return
    raise QuotaError(
        f"the quota of storage is used up: {used:,} of {allowed:,} bytes; it frees within ten minutes after analyses "
        "or uploads are deleted",
        STORAGE_RETRY_SECONDS,
    )
