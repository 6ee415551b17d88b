"""Keys fail closed: whatever is lost or revoked at the same time, nobody is let in whom nobody let in."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from backends.api_keys import ANYBODY, key_of_tenant, new_key
from backends.deployment import Deployment
from backends.storage import key_names
from deploy.embedded.stack import Stack
from layerdrift.contract.errors import ConflictError, ForbiddenError, InputError, UnauthorizedError
from layerdrift.contract.key import ApiKey, KeyRequest, Scope
from service.keys import main as keys_command
from tests.builders.environment import environment
from tests.builders.operator import ADMIN


def bound_to(store: Deployment, host: str) -> Deployment:
    return Deployment.connect(store.settings.model_copy(update={"host": host}))


def test_two_revocations_at_once_leave_the_last_key(store: Deployment, valkey: redis.Redis) -> None:
    open_to_all = bound_to(store, "0.0.0.0")
    for _ in range(20):
        made = [new_key(scopes=["admin"]) for _ in range(2)]
        for one in made:
            open_to_all.keys.create(one)

        def revoke(key_id: str) -> bool:
            try:
                bound_to(store, "0.0.0.0").keys.revoke(key_id)
            except ConflictError:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(revoke, [one.id for one in made])) == [False, True]
        with pytest.raises(UnauthorizedError):
            open_to_all.keys.find(None)
        (left,) = open_to_all.keys.all()
        store.blobs.delete_all(key_names.API_KEY_OBJECTS)
        assert left.id in {one.id for one in made}


def test_the_command_line_revokes_the_last_key_on_loopback_alone(
    store: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment(store.settings).items():
        if name.startswith("LAYERDRIFT_"):
            monkeypatch.setenv(name, value)
    made = new_key(scopes=["admin"])
    store.keys.create(made)
    monkeypatch.setenv("LAYERDRIFT_HOST", "0.0.0.0")
    assert keys_command(["revoke", made.id]) == 1
    assert "this is the last key" in capsys.readouterr().err
    monkeypatch.setenv("LAYERDRIFT_HOST", "127.0.0.1")
    assert keys_command(["revoke", made.id]) == 0
    assert store.keys.find(None) is ANYBODY
    with pytest.raises(UnauthorizedError):  # an API that others reach, whatever the command line was told
        bound_to(store, "0.0.0.0").keys.find(None)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_keys_that_were_lost_let_nobody_in(store: Deployment, valkey: redis.Redis, host: str) -> None:
    there = bound_to(store, host)
    secret = there.keys.create(new_key(scopes=["admin"]))
    store.blobs.delete_all(key_names.API_KEY_OBJECTS)
    valkey.flushdb()
    for given_ in (None, secret, "whole", "none"):
        with pytest.raises(UnauthorizedError):
            there.keys.find(given_)
    assert there.keys.needed()
    again = there.keys.create(new_key(scopes=["admin"]))  # on the machine
    assert there.keys.find(again).scopes == {Scope.ADMIN}


def test_keys_of_an_earlier_version_are_needed_too(store: Deployment, valkey: redis.Redis) -> None:
    store.keys.create(new_key(scopes=["admin"]))
    store.blobs.delete_all(key_names.KEYS_NEEDED)
    valkey.flushdb()
    with pytest.raises(UnauthorizedError):
        store.keys.find(None)
    store.blobs.delete_all(key_names.API_KEY_OBJECTS)
    valkey.flushdb()
    with pytest.raises(UnauthorizedError):
        store.keys.find(None)


def test_of_two_first_keys_at_once_one_is_made(store: Deployment) -> None:
    def make(_: int) -> bool:
        try:
            bound_to(store, "127.0.0.1").keys.create(new_key(scopes=["admin"]), maker=ANYBODY)
        except UnauthorizedError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(make, range(4))) == [False, False, False, True]
    store.blobs.delete_all(key_names.API_KEY_OBJECTS)
    store.blobs.delete_all(key_names.KEYS_NEEDED)
    with pytest.raises(InputError, match="the first key needs the admin scope"):
        store.keys.create(new_key(scopes=["read"]), maker=ANYBODY)


def test_an_admin_revokes_no_operator_and_opens_nothing(store: Deployment) -> None:
    admin, operator = new_key(scopes=["admin"]), new_key(scopes=["admin", "operator"])
    for one in (admin, operator):
        store.keys.create(one)
    with pytest.raises(ForbiddenError, match="only the operator scope"):
        store.keys.revoke(operator.id, admin)
    store.keys.revoke(operator.id)
    with pytest.raises(ForbiddenError, match="only the operator scope"):
        store.keys.revoke(admin.id, admin)
    store.keys.revoke(admin.id, operator)


def maker(**changes: object) -> ApiKey:
    fields = {"id": "key_00000001", "scopes": ["admin"], "created_at": datetime.now(UTC), "requests_per_minute": 50}
    return ApiKey.model_validate(fields | {"open_jobs": 5, "priority": 3} | changes)


def test_a_tenants_admin_raises_no_limit_and_an_operator_does() -> None:
    made = key_of_tenant(maker(), KeyRequest())
    assert (made.requests_per_minute, made.open_jobs, made.priority) == (50, 5, 3)
    assert (made.shared.key, made.shared.requests_per_minute) == ("key_00000001", 50)  # type: ignore[union-attr]
    assert key_of_tenant(made.model_copy(update={"scopes": {Scope.ADMIN}}), KeyRequest()).shared == made.shared
    for name in ("requests_per_minute", "open_jobs", "priority"):
        with pytest.raises(ForbiddenError, match=f"{name} 9 exceeds|{name} 51 exceeds"):
            key_of_tenant(maker(), KeyRequest.model_validate({name: 51 if name == "requests_per_minute" else 9}))
    with pytest.raises(ForbiddenError, match="requires the operator scope"):
        key_of_tenant(maker(), KeyRequest(scopes=frozenset({Scope.OPERATOR})))
    free = key_of_tenant(maker(scopes=["admin", "operator"]), KeyRequest(requests_per_minute=9_000, priority=9))
    assert (free.requests_per_minute, free.priority, free.shared) == (9_000, 9, None)


def test_more_keys_of_one_maker_make_no_more_requests(keyed: Stack) -> None:
    deployment_ = Deployment.connect(keyed.settings)
    tenant = f"few-{os.getpid()}"
    admin = deployment_.keys.create(new_key(tenant=tenant, scopes=["admin"], requests_per_minute=6))
    with httpx.Client(base_url=keyed.url) as http:

        def ask(method: str, path: str, secret: str, **more: Any) -> httpx.Response:
            return http.request(method, path, headers={"Authorization": f"Bearer {secret}"}, **more)

        refused = ask("POST", "/v1/keys", admin, json={"requests_per_minute": 600})
        assert (refused.status_code, "exceeds this key's own" in refused.text) == (403, True)
        made = [ask("POST", "/v1/keys", admin, json={}).json()["secret"] for _ in range(2)]
        statuses = [ask("GET", "/v1/analyses", secret).status_code for secret in made * 8]
        assert 429 in statuses[:13], statuses  # of 12 in two minutes at most
        assert ask("POST", "/v1/keys", ADMIN, json={"requests_per_minute": 900_000}).status_code == 201


NAMES = ("open", "queued", "running", "succeeded", "failed", "cancelled", "lock", "jobs", "default")


@given(st.lists(st.sampled_from(NAMES) | st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True), unique=True))
def test_no_tenant_is_called_so_that_its_keys_are_anothers(tenants: list[str]) -> None:
    found: list[str] = [
        key_names.KNOWN_TENANTS,
        key_names.API_KEYS,
        key_names.API_KEYS_LOCK,
    ]
    found += [key_names.WEBHOOKS]
    kinds = (key_names.JOBS, key_names.STUDIES)
    found += [name(kind) for kind in kinds for name in (key_names.open_records, key_names.restored)]
    for tenant in tenants:
        found.append(key_names.waiting_uploads(tenant))
        for kind in kinds:
            found += [key_names.records_by_time(kind, tenant), key_names.open_records_of(kind, tenant)]
            found += [key_names.records_by_status(kind, tenant, status) for status in ("queued", "running", "open")]
        found += [key_names.idempotency(tenant, digest) for digest in ("a", "b")]
    assert len(found) == len(set(found))
    stored = [key_names.tenant_prefix(tenant) for tenant in tenants] + [
        key_names.API_KEY_OBJECTS,
        key_names.KEYS_NEEDED,
        key_names.PROBES,
    ]
    assert not [pair for pair in itertools.permutations(stored, 2) if pair[0].startswith(pair[1])]
