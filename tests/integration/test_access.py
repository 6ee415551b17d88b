"""API keys on the real servers, and the API that asks for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import redis

from backends.api_keys import ANYBODY, bearer, is_loopback, require
from backends.deployment import Deployment
from backends.settings import Settings
from backends.storage import key_names
from deploy.embedded.ports import choose
from deploy.embedded.stack import Stack
from layerdrift.contract.errors import ForbiddenError, NotFoundError, RateError, UnauthorizedError
from layerdrift.contract.key import ApiKey, Scope
from layerdrift.sdk import Client, Retries
from service.keys import main as keys_command
from tests.builders.environment import environment
from tests.builders.texts import make_texts


def key(**changes: object) -> ApiKey:
    given = {"id": "key_1", "scopes": ["read"], "created_at": datetime.now(UTC)}
    return ApiKey.model_validate(given | changes)


def test_only_a_hash_of_a_key_is_kept(store: Deployment, valkey: redis.Redis) -> None:
    assert store.keys.find(None) == ANYBODY
    secret = store.keys.create(key(name="ci"))
    assert store.keys.find(secret) == key(name="ci", created_at=store.keys.find(secret).created_at)
    kept = b"".join(store.blobs.get(blob.key) + blob.key.encode() for blob in store.blobs.list("keys/"))
    kept += b"".join(valkey.hgetall(key_names.API_KEYS))  # type: ignore[arg-type]
    assert secret.encode() not in kept
    assert secret.removeprefix("ld_").encode() not in kept


def test_with_one_key_made_no_other_and_none_is_let_in(store: Deployment, valkey: redis.Redis) -> None:
    secret = store.keys.create(key())
    for wrong in (None, "", "ld_wrong", secret[:-1], secret + "x", "count"):
        with pytest.raises(UnauthorizedError):
            store.keys.find(wrong)
    valkey.flushdb()  # what Redis has lost comes back from S3
    with pytest.raises(UnauthorizedError):
        store.keys.find("ld_wrong")
    assert store.keys.find(secret).id == "key_1"
    store.keys.create(key(id="key_2"))
    store.keys.revoke("key_1")
    with pytest.raises(UnauthorizedError):
        store.keys.find(secret)
    with pytest.raises(NotFoundError):
        store.keys.revoke("key_1")


def test_a_key_may_do_what_its_scopes_say() -> None:
    require(key(scopes=["read"]), Scope.READ)
    with pytest.raises(ForbiddenError, match="lacks the submit scope; its scopes are read"):
        require(key(scopes=["read"]), Scope.SUBMIT)
    for scope in Scope:
        require(key(scopes=["admin"]), scope)


def test_a_key_that_is_used_too_often_is_told_when_to_come_back(store: Deployment) -> None:
    busy = key(id=os.urandom(4).hex(), requests_per_minute=3)

    def seven_times() -> None:
        for _ in range(7):  # at most one minute ends in between
            store.keys.count_request(busy)

    with pytest.raises(RateError, match="more than 3 requests per minute") as raised:
        seven_times()
    assert 1 <= raised.value.retry_after <= 60


@pytest.mark.parametrize("header", ["Basic abc", "Bearer", "Bearer ", "ld_key"])
def test_other_authorization_headers_are_refused(header: str) -> None:
    with pytest.raises(UnauthorizedError, match="Authorization: Bearer"):
        bearer(header)
    assert bearer("bearer x") == "x"
    assert bearer(None) is None


def test_loopback_is_told_from_other_addresses() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.1", "example.org"))


def test_without_a_key_the_api_binds_to_no_other_address(store: Deployment, settings: Settings) -> None:
    given = environment(settings, LAYERDRIFT_HOST="0.0.0.0", LAYERDRIFT_PORT=str(choose({"api": 0})["api"]))
    done = subprocess.run(
        [sys.executable, "-m", "service.main"], env=given, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "LAYERDRIFT_HOST is 0.0.0.0, and there is no API key" in done.stderr
    assert "LAYERDRIFT_ADMIN_KEY" in done.stderr
    short = subprocess.run(
        [sys.executable, "-m", "service.main"],
        env={**given, "LAYERDRIFT_ADMIN_KEY": "short"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (short.returncode, "20 characters or more" in short.stderr) == (1, True)


def test_keys_are_made_listed_and_revoked_from_the_command_line(
    store: Deployment, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment(settings).items():
        if name.startswith("LAYERDRIFT_"):
            monkeypatch.setenv(name, value)
    assert keys_command(["create", "--name", "ci", "--tenant", "search", "--scopes", "submit", "read"]) == 0
    secret = capsys.readouterr().out.strip()
    found = store.keys.find(secret)
    assert (found.tenant, set(found.scopes)) == ("search", {Scope.READ, Scope.SUBMIT})
    assert keys_command(["list"]) == 0
    listed = capsys.readouterr().out
    assert listed.split("\t")[:3] == [found.id, "search", "read,submit"]
    assert secret not in listed
    assert keys_command(["revoke", found.id]) == 0
    assert keys_command(["revoke", found.id]) == 1
    assert "there is no key" in capsys.readouterr().err
    assert keys_command(["create", "--tenant", "No/Tenant"]) == 1
    assert "tenant" in capsys.readouterr().err


@pytest.fixture(scope="module")
def guarded(stack: Stack, roots: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Deployment]]:
    """An API with an admin key, beside the session's; its worker is the one that it starts."""
    settings = stack.settings.model_copy(
        update={"redis_url": stack.settings.redis_url.removesuffix("/0") + "/5", "s3_bucket": "guarded"}
    )
    given = environment(
        settings,
        LAYERDRIFT_HOME=str(tmp_path_factory.mktemp("guarded")),
        LAYERDRIFT_PORT=str(choose({"api": 0})["api"]),
        LAYERDRIFT_ADMIN_KEY=ADMIN,
        LAYERDRIFT_MODEL_ROOTS=str(roots),
    )
    with Stack(given) as running:
        yield running.url, Deployment.connect(settings)


ADMIN = "a secret of the operator's own"


def test_tenants_are_apart_and_scopes_hold_over_http(
    guarded: tuple[str, Deployment], base_folder: Path, noised_folder: Path
) -> None:
    url, deployment = guarded
    made = {
        (tenant, scope): deployment.keys.create(key(id=f"key_{tenant}_{scope}", tenant=tenant, scopes=[scope]))
        for tenant in ("one", "two")
        for scope in Scope
    }
    body = {
        "base": {"uri": base_folder.as_uri()},
        "tuned": {"uri": noised_folder.as_uri()},
        "dataset": {"inline": {"texts": make_texts(60)}},
        "analysis": {"sae": None},
    }
    with httpx.Client(base_url=url, timeout=60) as http:

        def ask(method: str, path: str, secret: str | None, **more: object) -> httpx.Response:
            headers = {"Authorization": f"Bearer {secret}"} if secret else {}
            return http.request(method, path, headers=headers, **more)  # type: ignore[arg-type]

        nobody = ask("GET", "/v1/analyses", None)
        assert (nobody.status_code, nobody.headers["WWW-Authenticate"]) == (401, 'Bearer realm="layerdrift"')
        assert nobody.headers["content-type"] == "application/problem+json"
        assert ask("POST", "/v1/analyses", None, json={}).status_code == 401
        assert ask("GET", "/health", None).status_code == 200
        assert ask("GET", "/v1/analyses", ADMIN).json()["items"] == []
        assert ask("POST", "/v1/analyses", made["one", Scope.READ], json=body).status_code == 403
        posted = {
            tenant: ask("POST", "/v1/analyses", made[tenant, Scope.SUBMIT], json=body) for tenant in ("one", "two")
        }
        assert [answer.status_code for answer in posted.values()] == [202, 202]
        ids = {tenant: answer.json()["id"] for tenant, answer in posted.items()}
        assert ids["one"] != ids["two"]
        links = posted["two"].json()["links"]
        for name, path in links.items():
            method, scope = ("POST", Scope.SUBMIT) if name == "cancel" else ("GET", Scope.READ)
            assert ask(method, path, made["one", scope]).status_code == 404
        assert ask("DELETE", links["self"], made["one", Scope.ADMIN]).status_code == 404
        assert ask("DELETE", links["self"], made["two", Scope.SUBMIT]).status_code == 403
        listed = ask("GET", "/v1/analyses", made["one", Scope.READ]).json()["items"]
        assert [item["id"] for item in listed] == [ids["one"]]
        assert [blob.key for blob in deployment.blobs.list("tenants/one/") if ids["two"] in blob.key] == []
        upload = ask("POST", "/v1/uploads", made["one", Scope.SUBMIT], json={"filename": "a.csv"}).json()
        assert ask("PUT", f"/v1/uploads/{upload['id']}", made["two", Scope.SUBMIT], content=b"x").status_code == 404
        stolen = body | {"dataset": {"uri": upload["uri"]}}
        refused = ask("POST", "/v1/analyses", made["two", Scope.SUBMIT], json=stolen)
        assert (refused.status_code, "there is no upload" in refused.text) == (422, True)
        checkpoint = f"s3://guarded/tenants/one/checkpoints/{ids['one']}/"
        stolen = body | {"tuned": {"uri": checkpoint}}
        refused = ask("POST", "/v1/analyses", made["two", Scope.SUBMIT], json=stolen)
        assert (refused.status_code, "only tenants/two/checkpoints/" in refused.text) == (422, True)


def test_the_client_sends_its_key_and_raises_what_it_is_answered(
    guarded: tuple[str, Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, deployment = guarded
    reader = deployment.keys.create(key(id="key_sdk", tenant="sdk", scopes=["read"], requests_per_minute=3))
    with Client(url) as nobody, pytest.raises(UnauthorizedError, match="an API key is required"):
        nobody.list()
    with Client(url, api_key=reader, retries=Retries(tries=0)) as client:
        assert client.list().items == []
        with pytest.raises(ForbiddenError, match="lacks the submit scope"):
            client.cancel("an_" + "a" * 26)
        with pytest.raises(RateError) as raised:
            [client.list() for _ in range(8)]
    assert 1 <= raised.value.retry_after <= 60
    monkeypatch.setenv("LAYERDRIFT_API_KEY", ADMIN)
    with Client(url) as client:
        assert client.list().items == []


def test_open_jobs_and_requests_of_a_key_have_limits(
    guarded: tuple[str, Deployment], base_folder: Path, noised_folder: Path
) -> None:
    url, deployment = guarded
    limited = key(id="key_few", tenant="few", scopes=["submit", "read"], open_jobs=2, requests_per_minute=6)
    headers = {"Authorization": f"Bearer {deployment.keys.create(limited)}"}
    body = {
        "base": {"uri": base_folder.as_uri()},
        "tuned": {"uri": noised_folder.as_uri()},
        "dataset": {"inline": {"texts": make_texts(400)}},
    }
    answers = [httpx.post(f"{url}/v1/analyses", json=body | {"seed": seed}, headers=headers) for seed in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert answers[2].headers["Retry-After"] == "30"
    assert "2 jobs are queued or running" in answers[2].json()["detail"]
    same = httpx.post(f"{url}/v1/analyses", json=body | {"seed": 0}, headers=headers)
    assert same.status_code == 200
    for answer in answers[:2]:
        deployment.jobs.cancel(answer.json()["id"])
    codes = [httpx.get(f"{url}/v1/analyses", headers=headers).status_code for _ in range(14)]
    assert 429 in codes
