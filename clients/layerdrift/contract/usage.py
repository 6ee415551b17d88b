"""What a tenant has used, and what it may."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from layerdrift.contract.key import Tenant


class Quota(BaseModel):
    """What a tenant may use; null: as much as it likes. Seconds are those of workers in a calendar month (UTC)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu_seconds: float | None = Field(default=None, ge=0, description="of workers with a GPU, in a month")
    cpu_seconds: float | None = Field(default=None, ge=0, description="of workers without one, in a month")
    storage_bytes: int | None = Field(default=None, ge=0, description="of everything that it has in the bucket")
    open_jobs: int | None = Field(
        default=None, ge=1, description="jobs queued or running at once; a key may allow fewer"
    )


class Usage(BaseModel):
    """What a tenant has used in a month."""

    tenant: Tenant
    month: str = Field(description="calendar month in UTC, such as `2026-11`", pattern=r"^\d{4}-\d{2}$")
    gpu_seconds: float = Field(ge=0, description="that workers with a GPU worked on its jobs, lost attempts included")
    cpu_seconds: float = Field(ge=0, description="the same of workers without one")
    storage_bytes: int | None = Field(
        description="of its objects in the bucket, as last measured (every ten minutes); null: none were found yet"
    )
    open_jobs: int = Field(ge=0, description="jobs that are queued or running now")
    quota: Quota = Field(description="what it may use")
    resets_at: datetime = Field(description="when the seconds of the month begin anew")
