"""API keys as the API tells of them: what one may do, never the key itself, but once."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from layerdrift.contract.plain import Plain

DEFAULT_TENANT: Final = "default"

Tenant = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class Scope(StrEnum):
    """What a key may be used for. `admin` may all that its tenant can; `operator` sets limits beyond its own."""

    READ = "read"  # lists, reports, artifacts, gates
    SUBMIT = "submit"  # new analyses, uploads, cancelling
    ADMIN = "admin"  # deleting, and making keys within its own limits
    OPERATOR = "operator"  # makes keys with any limits


def _repeatable(schema: dict[str, Any]) -> None:
    """A scope that is named twice is one."""
    schema.pop("uniqueItems", None)


class KeyRequest(BaseModel):
    """A key that is asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Plain = Field(default="", max_length=200, description="for people")
    scopes: frozenset[Scope] = Field(
        default=frozenset({Scope.READ, Scope.SUBMIT}),
        min_length=1,
        json_schema_extra=_repeatable,
    )
    requests_per_minute: int = Field(default=600, ge=1, le=1_000_000, strict=True, description="more are answered 429")
    open_jobs: int = Field(
        default=100,
        ge=1,
        le=1_000_000,
        strict=True,
        description="jobs of its tenant that may be queued or running at once",
    )
    priority: int = Field(default=5, ge=0, le=9, strict=True, description="of its jobs: 9 before 0")


class Allowance(BaseModel):
    """Requests that keys of one maker have together."""

    model_config = ConfigDict(frozen=True)

    key: str = Field(description="id of the key that an operator made")
    requests_per_minute: int = Field(ge=1)


class ApiKey(KeyRequest):
    """What is known of a key; not the key itself."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    shared: Allowance | None = Field(
        default=None, description="of a key that a tenant made: its requests count against its maker's limit as well"
    )
    id: str = Field(description="short name for logs and lists; cannot be used to sign in")
    tenant: Tenant = Field(default=DEFAULT_TENANT, description="whose analyses it sees")
    created_at: datetime


class NewKey(ApiKey):
    """A key that has just been made."""

    secret: str = Field(description="what signs in, as `Authorization: Bearer`; it is not told again")


class KeyList(BaseModel):
    """The API keys of a tenant, oldest first."""

    items: list[ApiKey]
