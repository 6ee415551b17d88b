from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from layerdrift import __version__
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import UnavailableError
from layerdrift.contract.key import Scope
from service.routes import health
from tests.builders.records import record
from tests.builders.service import ListeningWorkers, ServiceDeployment, api


class Probed(ServiceDeployment):
    """A deployment that finds out whether its store has conditional writes when it is asked."""

    probes = 0

    def probe_store(self) -> bool:
        self.probes += 1
        self.blobs._conditional = True
        return True


def served() -> tuple[Probed, TestClient]:
    deployment = Probed(instance="here")
    http = api(deployment, health.router)
    http.app.state.deployment = deployment  # type: ignore[attr-defined]
    return deployment, http


def test_health_tells_which_server_answers_whatever_is_away() -> None:
    deployment, http = served()
    deployment.jobs.away = deployment.blobs.away = True
    assert http.get("/health").json() == {"status": "ok", "version": __version__, "instance": "here"}


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/metrics/queues", "/docs"])
def test_probes_need_no_key(path: str) -> None:
    deployment, http = served()
    deployment.sign_in(http, Scope.READ)
    del http.headers["Authorization"]
    assert http.get(path).status_code == 200


def test_a_service_with_redis_s3_and_a_worker_is_ready() -> None:
    deployment, http = served()
    answer = http.get("/ready")
    expected = {"ready": True, "redis": "ok", "s3": "ok", "s3_conditional_writes": True, "workers": 1}
    assert (answer.status_code, answer.json()) == (200, expected)
    http.get("/ready")
    assert deployment.probes == 1


@pytest.mark.parametrize(
    ("away", "expected"),
    [
        (("jobs",), {"redis": "Redis could not be reached", "s3": "ok", "s3_conditional_writes": True, "workers": 0}),
        (("blobs",), {"redis": "ok", "s3": "S3 could not be reached", "s3_conditional_writes": None, "workers": 1}),
        (
            ("jobs", "blobs"),
            {
                "redis": "Redis could not be reached",
                "s3": "S3 could not be reached",
                "s3_conditional_writes": None,
                "workers": 0,
            },
        ),
    ],
)
def test_what_is_away_is_said_for_each_by_itself(away: tuple[str, ...], expected: dict[str, object]) -> None:
    deployment, http = served()
    for name in away:
        setattr(getattr(deployment, name), "away", True)  # noqa: B010
    answer = http.get("/ready")
    assert (answer.status_code, answer.json()) == (503, {"ready": False} | expected)


@pytest.mark.parametrize(("listening", "status"), [({}, 503), ({"gpu": 1}, 503), ({"gpu": 1, "cpu": 1}, 200)])
def test_without_a_worker_it_is_not_ready(listening: dict[str, int], status: int) -> None:
    deployment, http = served()
    deployment.workers = ListeningWorkers(**listening)
    assert http.get("/ready").status_code == status


def test_where_jobs_start_workers_it_is_ready_without_one() -> None:
    deployment, http = served()
    deployment.workers = ListeningWorkers()
    deployment.settings = deployment.settings.model_copy(update={"scaled_queues": ["gpu"]})
    answer = http.get("/ready")
    assert (answer.status_code, answer.json()["ready"], answer.json()["workers"]) == (200, True, 0)


def test_an_autoscaler_reads_what_waits_in_each_queue() -> None:
    deployment, http = served()
    deployment.queue.ahead = 3
    deployment.workers = ListeningWorkers(cpu=2)
    expected = {"gpu": {"waiting": 0, "workers": 0}, "cpu": {"waiting": 3, "workers": 2}}
    assert http.get("/metrics/queues").json() == expected


def test_the_metrics_are_of_the_whole_deployment() -> None:
    deployment, http = served()
    for made in (record(), record(), record().model_copy(update={"status": Status.FAILED})):
        deployment.jobs.records[made.id] = made
    deployment.queue.ahead = 4
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'layerdrift_jobs{status="queued"} 2.0' in lines
    assert 'layerdrift_jobs{status="failed"} 1.0' in lines
    assert "layerdrift_queue_waiting 4.0" in lines
    assert 'layerdrift_workers{queue="cpu"} 1.0' in lines
    assert "# TYPE layerdrift_http_requests_total counter" in lines


def test_metrics_without_redis_are_an_error_and_no_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment, http = served()

    def away() -> int:
        raise UnavailableError("Redis could not be reached")

    monkeypatch.setattr(deployment.queue, "waiting", away)
    assert http.get("/metrics").status_code == 503


def test_the_documentation_loads_nothing_from_elsewhere() -> None:
    _, http = served()
    page = http.get("/docs").text
    assert "/static/docs/swagger-ui-bundle.js" in page
    assert "http://" not in page
    assert "https://" not in page
