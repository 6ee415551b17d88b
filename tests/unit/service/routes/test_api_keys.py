from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from layerdrift.contract.key import Scope
from service.routes import api_keys
from tests.builders.service import ServiceDeployment, api


@pytest.fixture
def deployment() -> ServiceDeployment:
    return ServiceDeployment()


@pytest.fixture
def http(deployment: ServiceDeployment) -> TestClient:
    return api(deployment, api_keys.router)


def test_a_new_key_is_told_once_with_its_secret(deployment: ServiceDeployment, http: TestClient) -> None:
    deployment.sign_in(http, Scope.ADMIN, tenant="ours")
    answer = http.post("/v1/keys", json={"name": "ci", "scopes": ["read"]})
    made = answer.json()
    assert (answer.status_code, made["tenant"], made["scopes"]) == (201, "ours", ["read"])
    assert deployment.keys.by_secret[made["secret"]].id == made["id"]
    listed = http.get("/v1/keys").json()["items"]
    assert [one["name"] for one in listed] == ["", "ci"]
    assert all("secret" not in one for one in listed)


def test_a_list_is_of_the_tenants_own_keys(deployment: ServiceDeployment, http: TestClient) -> None:
    deployment.sign_in(http, Scope.ADMIN, tenant="theirs")
    own = deployment.sign_in(http, Scope.ADMIN, tenant="ours")
    assert [one["id"] for one in http.get("/v1/keys").json()["items"]] == [own.id]


@pytest.mark.parametrize(
    "body",
    [
        {"scopes": []},
        {"scopes": ["root"]},
        {"requests_per_minute": 0},
        {"requests_per_minute": "60"},
        {"open_jobs": 1.5},
        {"priority": 10},
        {"name": "n" * 201},
        {"name": "a\nb"},
        {"tenant": "theirs"},
        {"shared": None},
    ],
    ids=str,
)
def test_a_key_that_cannot_be_is_refused(deployment: ServiceDeployment, http: TestClient, body: dict[str, Any]) -> None:
    deployment.sign_in(http, Scope.ADMIN)
    assert http.post("/v1/keys", json=body).status_code == 422
    assert len(deployment.keys.all()) == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"scopes": ["operator"]}, "requires the operator scope"),
        ({"open_jobs": 6}, "open_jobs 6 exceeds this key's own limit of 5"),
    ],
)
def test_a_key_makes_none_that_may_more_than_itself(
    deployment: ServiceDeployment, http: TestClient, body: dict[str, Any], reason: str
) -> None:
    deployment.sign_in(http, Scope.ADMIN, open_jobs=5)
    answer = http.post("/v1/keys", json=body)
    assert answer.status_code == 403
    assert reason in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/keys"), ("GET", "/v1/keys"), ("DELETE", "/v1/keys/key_00000000")]
)
def test_keys_are_for_admins(deployment: ServiceDeployment, http: TestClient, method: str, path: str) -> None:
    deployment.sign_in(http, Scope.READ, Scope.SUBMIT)
    answer = http.request(method, path, json={} if method == "POST" else None)
    assert (answer.status_code, "lacks the admin scope" in answer.json()["detail"]) == (403, True)


def test_a_revoked_key_lets_nobody_in(deployment: ServiceDeployment, http: TestClient) -> None:
    deployment.sign_in(http, Scope.ADMIN)
    made = http.post("/v1/keys", json={"scopes": ["admin"]}).json()
    assert http.delete(f"/v1/keys/{made['id']}").status_code == 204
    assert http.get("/v1/keys", headers={"Authorization": f"Bearer {made['secret']}"}).status_code == 401


def test_a_key_of_another_tenant_cannot_be_revoked(deployment: ServiceDeployment, http: TestClient) -> None:
    theirs = deployment.sign_in(http, Scope.ADMIN, tenant="theirs")
    deployment.sign_in(http, Scope.ADMIN, tenant="ours")
    assert http.delete(f"/v1/keys/{theirs.id}").status_code == 404
    assert len(deployment.keys.all()) == 2


@pytest.mark.parametrize("key_id", ["key_1", "key_0000000G", "key_000000000", "KEY_00000000", "key_00000000%0A", "*"])
def test_an_id_that_no_key_can_have_is_refused(deployment: ServiceDeployment, http: TestClient, key_id: str) -> None:
    deployment.sign_in(http, Scope.ADMIN)
    assert http.delete(f"/v1/keys/{key_id}").status_code == 422
