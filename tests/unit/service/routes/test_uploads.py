from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from backends.storage import key_names
from layerdrift.contract.key import Scope
from service.http.concurrency import ConcurrencyLimit
from service.routes import uploads
from tests.builders.service import ServiceDeployment, api

BODY = b"text,label\na,1\n"


@pytest.fixture
def deployment() -> ServiceDeployment:
    return ServiceDeployment(max_upload_bytes=1_000)


@pytest.fixture
def http(deployment: ServiceDeployment) -> TestClient:
    return api(deployment, uploads.router)


def announced(http: TestClient, **declared: object) -> str:
    answer = http.post("/v1/uploads", json={"filename": "x.csv", **declared})
    assert answer.status_code == 201, answer.text
    return str(answer.headers["location"])


def test_an_upload_waits_until_its_bytes_have_come(deployment: ServiceDeployment, http: TestClient) -> None:
    where = announced(http)
    waiting = http.get(where).json()
    assert (waiting["status"], waiting["bytes"]) == ("waiting", None)
    assert deployment.waiting_uploads.waiting == {("default", waiting["id"])}
    done = http.put(where, content=BODY).json()
    assert (done["status"], done["bytes"], done["uri"]) == ("complete", len(BODY), f"upload://{done['id']}")
    assert done["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert deployment.waiting_uploads.waiting == set()
    assert deployment.blobs.objects[key_names.upload_object("default", done["id"])] == BODY
    assert http.get(where).json() == done


def test_bytes_come_in_any_pieces(http: TestClient) -> None:
    def pieces() -> Iterator[bytes]:
        yield from (bytes([byte]) for byte in BODY)

    done = http.put(announced(http), content=pieces()).json()
    assert done["sha256"] == hashlib.sha256(BODY).hexdigest()


def test_a_file_may_be_empty(http: TestClient) -> None:
    done = http.put(announced(http, bytes=0)).json()
    assert (done["status"], done["bytes"]) == ("complete", 0)


@pytest.mark.parametrize(
    ("declared", "sent", "status"),
    [
        ({"bytes": len(BODY) + 1}, BODY, 422),
        ({"bytes": len(BODY) - 1}, BODY, 413),
        ({"bytes": 0}, BODY, 413),
        ({"sha256": "0" * 64}, BODY, 422),
        ({}, b"x" * 1_001, 413),
    ],
)
def test_bytes_that_are_not_those_announced_may_be_sent_again(
    deployment: ServiceDeployment, http: TestClient, declared: dict[str, object], sent: bytes, status: int
) -> None:
    where = announced(http, **declared)
    assert http.put(where, content=sent).status_code == status
    assert http.get(where).json()["status"] == "waiting"
    assert len(deployment.waiting_uploads.waiting) == 1


def test_the_same_bytes_are_taken_twice_and_others_are_not(http: TestClient) -> None:
    where = announced(http)
    first = http.put(where, content=BODY).json()
    assert http.put(where, content=BODY).json() == first
    assert http.put(where, content=BODY + b"\n").status_code == 409
    assert http.get(where).json() == first


def test_a_file_that_is_there_already_is_not_waited_for(deployment: ServiceDeployment, http: TestClient) -> None:
    digest = hashlib.sha256(BODY).hexdigest()
    where = announced(http, sha256=digest)
    http.put(where, content=BODY)
    assert announced(http, sha256=digest) == where
    assert deployment.waiting_uploads.waiting == set()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"filename": "x", "bytes": 1_001}, 413),
        ({"filename": "x", "bytes": 1_000}, 201),
        ({"filename": "x", "bytes": -1}, 422),
        ({"filename": "x", "bytes": "7"}, 422),
        ({"filename": ""}, 422),
        ({"filename": "../x"}, 422),
        ({"filename": "a\\b"}, 422),
        ({"filename": "a\u202eb"}, 422),
        ({"filename": "x" * 256}, 422),
        ({"filename": "x", "sha256": "0" * 63}, 422),
        ({"filename": "x", "sha256": "A" * 64}, 422),
        ({"filename": "x", "size": 3}, 422),
    ],
    ids=str,
)
def test_uploads_that_cannot_be_are_refused_at_once(http: TestClient, body: dict[str, object], status: int) -> None:
    assert http.post("/v1/uploads", json=body).status_code == status


def test_no_more_are_announced_than_may_wait(deployment: ServiceDeployment, http: TestClient) -> None:
    deployment.waiting_uploads.full = True
    answer = http.post("/v1/uploads", json={"filename": "x"})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
    assert deployment.blobs.objects == {}


def test_a_removed_upload_is_gone_with_its_bytes(deployment: ServiceDeployment, http: TestClient) -> None:
    where = announced(http)
    http.put(where, content=BODY)
    assert http.delete(where).status_code == 204
    assert deployment.blobs.objects == {}
    assert [http.request(method, where).status_code for method in ("GET", "PUT", "DELETE")] == [404] * 3


def test_an_upload_that_is_removed_before_its_bytes_no_longer_waits(
    deployment: ServiceDeployment, http: TestClient
) -> None:
    assert http.delete(announced(http)).status_code == 204
    assert deployment.waiting_uploads.waiting == set()


def test_an_upload_of_another_tenant_is_not_there(deployment: ServiceDeployment, http: TestClient) -> None:
    where = announced(http)
    deployment.sign_in(http, Scope.ADMIN, tenant="other")
    assert [http.request(method, where).status_code for method in ("GET", "PUT", "DELETE")] == [404] * 3


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_who_may_only_read_changes_no_upload(deployment: ServiceDeployment, http: TestClient, method: str) -> None:
    where = announced(http)
    deployment.sign_in(http, Scope.READ)
    assert http.get(where).status_code == 200
    assert http.request(method, where).status_code == 403


@pytest.mark.parametrize("upload_id", ["x", "up_" + "1" * 26, "up_" + "a" * 25, "up_" + "A" * 26])
def test_an_id_that_no_upload_can_have_is_refused(http: TestClient, upload_id: str) -> None:
    assert http.get(f"/v1/uploads/{upload_id}").status_code == 422


def test_uploads_at_once_are_bounded_and_given_back(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = ConcurrencyLimit("uploads", of_client=1, in_all=1)
    monkeypatch.setattr(uploads, "RECEIVING", limit)
    where = announced(http, bytes=len(BODY))
    with limit.held("default"):
        assert http.put(where, content=BODY).status_code == 429
    assert http.put(where, content=b"").status_code == 422
    assert http.put(where, content=BODY).status_code == 200
