"""What keys may do, and who is let in. Keys in Redis, and many requests at once: tests/integration/test_access."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import pytest
import redis
from pydantic import ValidationError

from backends.api_keys import ANYBODY, KeyStore, bearer, is_loopback, key_of_tenant, new_key, require
from backends.storage import key_names
from layerdrift.contract.errors import ForbiddenError, UnauthorizedError
from layerdrift.contract.key import ApiKey, KeyRequest, Scope
from tests.builders.stores import MemoryBlobs


def maker(**changes: Any) -> ApiKey:
    """A tenant's admin with limits below the usual ones."""
    fields = {"tenant": "team", "scopes": ["admin"], "requests_per_minute": 50, "open_jobs": 5, "priority": 3}
    return new_key(**fields | changes)


def stored(*keys: tuple[ApiKey, str]) -> KeyStore:
    """A store whose bucket has these keys under their secrets."""
    blobs = MemoryBlobs()
    for key, secret in keys:
        name = key_names.api_key_object(hashlib.sha256(secret.encode()).hexdigest())
        blobs.put(name, key.model_dump_json().encode(), "application/json")
    return KeyStore(cast(redis.Redis, None), blobs, "0.0.0.0")


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        (["read"], {Scope.READ}),
        (["submit"], {Scope.SUBMIT}),
        (["operator"], {Scope.OPERATOR}),
        (["read", "submit"], {Scope.READ, Scope.SUBMIT}),
        (["admin"], set(Scope)),
    ],
)
def test_a_key_may_do_what_its_scopes_say_and_an_admin_everything(scopes: list[str], allowed: set[Scope]) -> None:
    key = new_key(scopes=scopes)
    for scope in allowed:
        require(key, scope)
    for scope in set(Scope) - allowed:
        with pytest.raises(ForbiddenError, match=f"lacks the {scope} scope; its scopes are {', '.join(scopes)}"):
            require(key, scope)


@pytest.mark.parametrize(
    "fields", [{"tenant": "UPPER"}, {"tenant": "a:b"}, {"tenant": ""}, {"scopes": []}, {"scopes": ["all"]}]
)
def test_a_key_that_cannot_be_is_not_made(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        new_key(**fields)


def test_two_keys_have_two_ids() -> None:
    assert new_key().id != new_key().id


def test_limits_that_are_not_asked_for_are_the_makers_where_these_are_lower() -> None:
    made = key_of_tenant(maker(), KeyRequest())
    assert (made.requests_per_minute, made.open_jobs, made.priority) == (50, 5, 3)
    usual, generous = KeyRequest(), maker(requests_per_minute=9_999, open_jobs=9_999, priority=9)
    made = key_of_tenant(generous, usual)
    assert (made.requests_per_minute, made.open_jobs, made.priority) == (
        usual.requests_per_minute,
        usual.open_jobs,
        usual.priority,
    )


@pytest.mark.parametrize("name", ["requests_per_minute", "open_jobs", "priority"])
def test_a_limit_may_be_as_high_as_the_makers_and_no_higher(name: str) -> None:
    own = getattr(maker(), name)
    assert getattr(key_of_tenant(maker(), KeyRequest.model_validate({name: own})), name) == own
    with pytest.raises(ForbiddenError, match=f"{name} {own + 1} exceeds this key's own limit of {own}"):
        key_of_tenant(maker(), KeyRequest.model_validate({name: own + 1}))


def test_a_key_belongs_to_its_makers_tenant_and_counts_against_its_limit() -> None:
    first = maker()
    made = key_of_tenant(first, KeyRequest(scopes=frozenset({Scope.ADMIN})))
    assert made.tenant == "team"
    assert made.shared is not None
    assert (made.shared.key, made.shared.requests_per_minute) == (first.id, 50)
    assert key_of_tenant(made, KeyRequest()).shared == made.shared  # keys of keys make no more requests either


def test_an_operator_alone_makes_operators_and_sets_any_limit() -> None:
    operators = KeyRequest(scopes=frozenset({Scope.OPERATOR}), requests_per_minute=9_000, open_jobs=9_000, priority=9)
    with pytest.raises(ForbiddenError, match="requires the operator scope"):
        key_of_tenant(maker(), operators)
    made = key_of_tenant(maker(scopes=["admin", "operator"]), operators)
    assert (made.requests_per_minute, made.open_jobs, made.priority, made.shared) == (9_000, 9_000, 9, None)
    assert made.tenant == "team"


def test_who_asks_while_there_is_no_key_may_do_all_and_is_not_counted() -> None:
    for scope in Scope:
        require(ANYBODY, scope)
    stored().count_request(ANYBODY)  # asks no Redis


def test_keys_are_listed_oldest_first_and_known_by_their_secrets() -> None:
    old, new = maker(created_at="2026-01-01T00:00:00Z"), maker(created_at="2026-02-01T00:00:00Z")
    store = stored((new, "ld_new"), (old, "ld_old"))
    assert store.all() == [old, new]
    assert [store.knows(secret) for secret in ("ld_old", "ld_new", "ld_other", "")] == [True, True, False, False]


def test_keys_are_asked_for_as_soon_as_there_was_one() -> None:
    assert not stored().needed()
    assert stored((maker(), "ld_secret")).needed()
    lost = MemoryBlobs()
    lost.put(key_names.KEYS_NEEDED, b"{}", "application/json")
    assert KeyStore(cast(redis.Redis, None), lost, "127.0.0.1").needed()


def test_a_key_of_an_earlier_version_with_an_odd_name_can_still_be_listed() -> None:
    odd = maker().model_copy(update={"name": "two\nlines"})
    assert stored((odd, "ld_secret")).all() == [odd]


@pytest.mark.parametrize(
    ("header", "secret"),
    [(None, None), ("Bearer ld_x", "ld_x"), ("bearer ld_x", "ld_x"), ("BEARER   ld_x ", "ld_x")],
)
def test_the_key_is_what_follows_bearer(header: str | None, secret: str | None) -> None:
    assert bearer(header) == secret


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer\tld_x", "Basic bGQ6eA==", "ld_x", "Token ld_x"])
def test_a_header_that_holds_no_key_is_refused_with_how_to_send_one(header: str) -> None:
    with pytest.raises(UnauthorizedError, match="send the key as Authorization: Bearer <key>"):
        bearer(header)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("128.0.0.1", False),
        ("192.168.0.1", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("127.0.0.1:8000", False),
        ("", False),
    ],
)
def test_only_addresses_of_this_machine_alone_are_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
