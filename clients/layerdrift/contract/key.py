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
    """What a key may do. `admin` grants every action within its tenant; `operator` may set limits above its own."""

    READ = "read"  # list analyses; read reports and artifacts; evaluate policies
    SUBMIT = "submit"  # submit and cancel analyses; manage uploads
    ADMIN = "admin"  # delete analyses; create keys within its own limits
    OPERATOR = "operator"  # create keys with any limits


def _repeatable(schema: dict[str, Any]) -> None:
    """A scope that is named twice is one."""
    schema.pop("uniqueItems", None)


class KeyRequest(BaseModel):
    """A request to create an API key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Plain = Field(default="", max_length=200, description="display name")
    scopes: frozenset[Scope] = Field(
        default=frozenset({Scope.READ, Scope.SUBMIT}),
        min_length=1,
        json_schema_extra=_repeatable,
    )
    requests_per_minute: int = Field(
        default=600,
        ge=1,
        le=1_000_000,
        strict=True,
        description="maximum requests per minute; further requests get 429",
    )
    open_jobs: int = Field(
        default=100,
        ge=1,
        le=1_000_000,
        strict=True,
        description="maximum number of the tenant's jobs that may be queued or running at once",
    )
    priority: int = Field(default=5, ge=0, le=9, strict=True, description="priority of the key's jobs; 9 runs before 0")


class Allowance(BaseModel):
    """A request limit shared by several keys."""

    model_config = ConfigDict(frozen=True)

    key: str = Field(description="id of the operator-created key that the limit belongs to")
    requests_per_minute: int = Field(ge=1)


class ApiKey(KeyRequest):
    """An API key without its secret."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    shared: Allowance | None = Field(
        default=None,
        description="for a key created by a tenant: its requests also count against the limit of the key that "
        "created it",
    )
    id: str = Field(description="short identifier for logs and lists; cannot be used to authenticate")
    tenant: Tenant = Field(default=DEFAULT_TENANT, description="tenant whose analyses the key can access")
    created_at: datetime


class NewKey(ApiKey):
    """A newly created API key with its secret."""

    secret: str = Field(description="send as `Authorization: Bearer <secret>`; shown only once")


class KeyList(BaseModel):
    """The API keys of a tenant, oldest first."""

    items: list[ApiKey]
