"""Usage over HTTP: one's own, and that of others for operators; what a used-up quota answers."""

from __future__ import annotations

from fastapi.testclient import TestClient

from layerdrift.contract.key import Scope
from layerdrift.contract.usage import Quota
from service.routes import uploads, usage
from tests.builders.service import ServiceDeployment, api


def served() -> tuple[ServiceDeployment, TestClient]:
    deployment = ServiceDeployment(quotas={"search": Quota(storage_bytes=10)})
    deployment.usage.add("search", "gpu", 12.34)
    deployment.usage.stored["search"] = 2048
    return deployment, api(deployment, usage.router, uploads.router)


def test_a_tenant_reads_its_own_usage() -> None:
    deployment, http = served()
    deployment.sign_in(http, Scope.READ, tenant="search")
    found = http.get("/v1/usage").json()
    assert (found["tenant"], found["gpu_seconds"], found["cpu_seconds"]) == ("search", 12.3, 0.0)
    assert (found["storage_bytes"], found["open_jobs"], found["quota"]["storage_bytes"]) == (2048, 0, 10)


def test_only_an_operator_reads_that_of_another_tenant() -> None:
    deployment, http = served()
    deployment.sign_in(http, Scope.ADMIN, tenant="other")
    assert http.get("/v1/usage", params={"tenant": "search"}).status_code == 403
    assert http.get("/v1/usage", params={"tenant": "other"}).json()["tenant"] == "other"
    deployment.sign_in(http, Scope.READ, Scope.OPERATOR, tenant="other")
    assert http.get("/v1/usage", params={"tenant": "search"}).json()["gpu_seconds"] == 12.3


def test_an_upload_beyond_the_quota_is_refused_with_the_time_to_wait() -> None:
    deployment, http = served()
    deployment.sign_in(http, Scope.SUBMIT, tenant="search")
    answer = http.post("/v1/uploads", json={"filename": "a.csv"})
    assert (answer.status_code, answer.json()["type"]) == (429, "urn:layerdrift:quota")
    assert "2,048 of 10 bytes" in answer.json()["detail"]
    assert answer.headers["Retry-After"] == "600"
