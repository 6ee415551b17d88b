"""API keys: which can be asked for, and that no secret is told twice."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from layerdrift.contract.key import ApiKey, KeyRequest, NewKey, Scope

CREATED = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("limit", "least", "most"), [("requests_per_minute", 1, 10**6), ("open_jobs", 1, 10**6), ("priority", 0, 9)]
)
def test_a_limit_holds_at_its_ends_and_not_beyond(limit: str, least: int, most: int) -> None:
    for allowed in (least, most):
        assert getattr(KeyRequest.model_validate({limit: allowed}), limit) == allowed
    for refused in (least - 1, most + 1):
        with pytest.raises(ValidationError, match=limit):
            KeyRequest.model_validate({limit: refused})


@pytest.mark.parametrize(
    "body",
    [
        {"scopes": []},
        {"scopes": ["write"]},
        {"priority": True},
        {"priority": "5"},
        {"open_jobs": 1.0},
        {"name": "a\nb"},
        {"name": "x" * 201},
        {"tenant": "other"},
    ],
    ids=str,
)
def test_what_is_no_key_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        KeyRequest.model_validate(body)


def test_a_key_may_read_and_submit_and_nothing_else_unless_that_is_said() -> None:
    assert KeyRequest().scopes == {Scope.READ, Scope.SUBMIT}


def test_a_scope_that_is_named_twice_is_one_and_the_schema_allows_it() -> None:
    assert KeyRequest.model_validate({"scopes": ["read", "read"]}).scopes == {Scope.READ}
    assert "uniqueItems" not in KeyRequest.model_json_schema()["properties"]["scopes"]


def test_a_key_that_is_listed_has_lost_its_secret() -> None:
    made = NewKey(id="key_1", created_at=CREATED, secret="ld_abc")
    assert "ld_abc" not in ApiKey.model_validate(made.model_dump()).model_dump_json()


@pytest.mark.parametrize("tenant", ["", "-a", "A", "a_b", "a" * 64, "a b", "a/b"])
def test_a_tenant_is_a_name_that_keys_of_stores_can_hold(tenant: str) -> None:
    with pytest.raises(ValidationError, match="tenant"):
        ApiKey(id="key_1", created_at=CREATED, tenant=tenant)
    assert ApiKey(id="key_1", created_at=CREATED, tenant="a" + "-" * 62).tenant.startswith("a-")
