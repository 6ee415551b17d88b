from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException

from backends.jobs.records import JobRecord, Wanted
from backends.storage import key_names
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import RateError
from layerdrift.contract.key import Scope
from service.routes import analyses
from service.routes.analyses import POLL_SECONDS, negotiated
from service.use_cases import evaluate
from tests.builders.records import record
from tests.builders.service import ServiceDeployment, api

NEW, OLD = "an_" + "a" * 26, "an_" + "b" * 26
RULE = {"id": "r", "message": "too much", "path": "layers[*].drift", "max": 1}


def made(analysis_id: str = NEW, age: float = 0, **changes: Any) -> JobRecord:
    return record(age, analysis_id).model_copy(update=changes)


def served(*records: JobRecord, **settings: Any) -> tuple[ServiceDeployment, TestClient]:
    deployment = ServiceDeployment(*records, **settings)
    return deployment, api(deployment, analyses.router)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "json"),
        ("application/json", "json"),
        ("", "json"),
        ("  ", "json"),
        ("APPLICATION/JSON;q=0.1, Text/Markdown", "md"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "html"),
        ("text/markdown, text/html;q=0.5", "md"),
        ("text/*;q=0.5, application/json;q=0.4", "html"),
        ("text/*, text/html;q=0", "md"),
        ("application/json;q=0, */*;q=0.1", "html"),
        ("text/html;q=nonsense, application/json", "json"),
        ("text/html;q=nan, text/markdown;q=0.1", "md"),
        ("text/html;level=1;q=0.2, text/markdown;q=0.3", "md"),
        ("text/html;q=0.5, application/json;q=0.5", "json"),
    ],
)
def test_the_report_comes_as_what_is_accepted_most(accept: str, expected: str) -> None:
    assert negotiated(accept) == expected


@pytest.mark.parametrize("accept", ["application/pdf", "image/*", "*/*;q=0", "json", ",", "application/json;q=0"])
def test_a_format_that_there_is_not_is_refused(accept: str) -> None:
    with pytest.raises(HTTPException, match=r"406.*application/json, text/html, text/markdown"):
        negotiated(accept)


def test_a_list_is_newest_first_and_goes_on_where_it_ended() -> None:
    _, http = served(made(OLD, age=60), made(NEW))
    first = http.get("/v1/analyses?limit=1").json()
    second = http.get("/v1/analyses", params={"limit": 1, "cursor": first["next_cursor"]}).json()
    assert [item["id"] for item in first["items"] + second["items"]] == [NEW, OLD]
    assert second["next_cursor"] is None


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({}, Wanted()),
        ({"tag": "team:search"}, Wanted(tag=("team", "search"))),
        ({"tag": "team:"}, Wanted(tag=("team", ""))),
        ({"tag": "url:https://x:80/y"}, Wanted(tag=("url", "https://x:80/y"))),
        ({"status": "failed", "name": "é"}, Wanted(status=Status.FAILED, name="é")),
    ],
)
def test_a_list_is_of_what_the_filters_say(query: dict[str, str], wanted: Wanted) -> None:
    deployment, http = served()
    assert http.get("/v1/analyses", params=query).status_code == 200
    assert deployment.listing.asked == wanted


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "101"},
        {"limit": "ten"},
        {"tag": "no-colon"},
        {"tag": ":value"},
        {"tag": "k:" + "v" * 201},
        {"status": "done"},
        {"statuss": "failed"},
        {"name": "n" * 201},
        {"cursor": "c" * 201},
    ],
    ids=str,
)
def test_a_filter_that_is_wrong_is_refused(query: dict[str, str]) -> None:
    _, http = served()
    assert http.get("/v1/analyses", params=query).status_code == 422


def test_an_open_analysis_says_when_to_ask_again_and_a_finished_one_does_not() -> None:
    _, http = served(made(OLD, 60, status=Status.FAILED), made(NEW, status=Status.RUNNING))
    assert http.get(f"/v1/analyses/{NEW}").headers["retry-after"] == str(POLL_SECONDS)
    assert "retry-after" not in http.get(f"/v1/analyses/{OLD}").headers


def test_only_a_queued_analysis_says_how_many_come_before_it() -> None:
    _, http = served(made(OLD, 60), made(NEW))
    assert [http.get(f"/v1/analyses/{one}").json()["queued_before"] for one in (OLD, NEW)] == [0, 1]
    _, http = served(made(OLD, 60), made(NEW, status=Status.RUNNING))
    assert http.get(f"/v1/analyses/{NEW}").json()["queued_before"] is None


def test_an_analysis_that_the_client_has_is_not_sent_again_until_it_changes() -> None:
    deployment, http = served(made())
    tag = http.get(f"/v1/analyses/{NEW}").headers["etag"]
    again = http.get(f"/v1/analyses/{NEW}", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["retry-after"] == str(POLL_SECONDS)
    deployment.jobs.update(NEW, lambda found: found.model_copy(update={"status": Status.RUNNING}))
    assert http.get(f"/v1/analyses/{NEW}", headers={"If-None-Match": tag}).status_code == 200


@pytest.mark.parametrize("reference", ["latest", "my run", NEW])
def test_an_analysis_goes_by_its_id_its_name_and_latest(reference: str) -> None:
    named = record().request.model_copy(update={"name": "my run"})
    _, http = served(made(OLD, 60), made(NEW, request=named))
    assert http.get(f"/v1/analyses/{reference}").json()["id"] == NEW


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("POST", "/rerun"),
        ("GET", "/report"),
        ("GET", "/artifacts"),
        ("GET", f"/compare/{NEW}"),
    ],
)
def test_an_analysis_of_another_tenant_is_not_there(method: str, path: str) -> None:
    deployment, http = served(made(NEW, status=Status.SUCCEEDED, tenant="theirs"))
    deployment.reports.finished[key_names.Owned("theirs", NEW), "json"] = b"{}"
    deployment.sign_in(http, Scope.ADMIN, tenant="ours")
    answer = http.request(method, f"/v1/analyses/{NEW}{path}")
    assert (answer.status_code, answer.json()["detail"]) == (404, f"there is no analysis {NEW}")


@pytest.mark.parametrize(
    ("method", "path", "scopes", "status"),
    [
        ("DELETE", "", (Scope.READ, Scope.SUBMIT), 403),
        ("DELETE", "", (Scope.ADMIN,), 409),
        ("POST", "/cancel", (Scope.READ,), 403),
        ("POST", "/cancel", (Scope.SUBMIT,), 202),
        ("POST", "/rerun", (Scope.READ,), 403),
        ("POST", "/rerun", (Scope.SUBMIT,), 409),
        ("GET", "", (Scope.SUBMIT,), 403),
        ("GET", "", (Scope.READ,), 200),
    ],
)
def test_a_key_may_do_what_its_scopes_say(method: str, path: str, scopes: tuple[Scope, ...], status: int) -> None:
    deployment, http = served(made())
    deployment.sign_in(http, *scopes)
    assert http.request(method, f"/v1/analyses/{NEW}{path}").status_code == status


def test_without_a_key_nothing_is_told_of_what_there_is() -> None:
    deployment, http = served(made())
    deployment.sign_in(http, Scope.READ)
    del http.headers["Authorization"]
    answers = [http.get(f"/v1/analyses/{reference}") for reference in (NEW, OLD, "latest", "no such name")]
    assert {(answer.status_code, answer.json()["detail"]) for answer in answers} == {(401, "an API key is required")}


def test_a_key_that_asks_too_often_is_told_when_to_come_back() -> None:
    deployment, http = served(made())
    deployment.sign_in(http, Scope.READ)
    deployment.keys.refused = RateError("too many", 17)
    answer = http.get(f"/v1/analyses/{NEW}")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "17")


@pytest.mark.parametrize(
    ("before", "status", "after"),
    [(Status.QUEUED, 202, "cancelled"), (Status.RUNNING, 202, "running"), (Status.SUCCEEDED, 409, None)],
)
def test_what_is_cancelled_depends_on_how_far_it_is(before: Status, status: int, after: str | None) -> None:
    deployment, http = served(made(status=before))
    answer = http.post(f"/v1/analyses/{NEW}/cancel")
    assert (answer.status_code, answer.json().get("status") if after else None) == (status, after)
    assert deployment.jobs.get(NEW).cancel_requested is (before is Status.RUNNING)


def test_a_deleted_analysis_is_gone() -> None:
    _, http = served(made(status=Status.CANCELLED))
    assert http.delete(f"/v1/analyses/{NEW}").status_code == 204
    assert http.get(f"/v1/analyses/{NEW}").status_code == 404


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, Status.FAILED, Status.CANCELLED])
@pytest.mark.parametrize("path", ["report", "artifacts", f"compare/{NEW}"])
def test_without_a_report_it_says_why_there_is_none(status: Status, path: str) -> None:
    _, http = served(made(status=status))
    answer = http.get(f"/v1/analyses/{NEW}/{path}")
    assert (answer.status_code, answer.json()["detail"]) == (409, f"the analysis is {status}: it has no report")


@pytest.mark.parametrize(
    ("accept", "format", "media_type", "sandboxed"),
    [
        ("*/*", "json", "application/json", False),
        ("text/html", "html", "text/html; charset=utf-8", True),
        ("text/markdown", "md", "text/markdown; charset=utf-8", False),
    ],
)
def test_a_report_comes_in_each_format_with_the_rules_for_a_browser(
    accept: str, format: Any, media_type: str, sandboxed: bool
) -> None:
    finished = made(status=Status.SUCCEEDED)
    deployment, http = served(finished)
    deployment.reports.finished[finished.owned, format] = format.encode()
    answer = http.get(f"/v1/analyses/{NEW}/report", headers={"Accept": accept})
    assert (answer.text, answer.headers["content-type"]) == (format, media_type)
    assert ("sandbox" in answer.headers.get("content-security-policy", "")) is sandboxed
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["vary"] == "Accept, Authorization"
    assert answer.headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize(
    ("hit", "said"), [(True, "layerdrift-redis; hit"), (False, "layerdrift-redis; fwd=uri-miss; stored")]
)
def test_a_report_says_whether_redis_had_it(hit: bool, said: str) -> None:
    finished = made(status=Status.SUCCEEDED)
    deployment, http = served(finished)
    deployment.reports.finished[finished.owned, "json"] = b"{}"
    deployment.reports.hit = hit
    assert http.get(f"/v1/analyses/{NEW}/report").headers["cache-status"] == said


def test_a_report_that_the_client_has_is_not_sent_again() -> None:
    finished = made(status=Status.SUCCEEDED)
    deployment, http = served(finished)
    deployment.reports.finished[finished.owned, "json"] = b"{}"
    tag = http.get(f"/v1/analyses/{NEW}/report").headers["etag"]
    assert http.get(f"/v1/analyses/{NEW}/report", headers={"If-None-Match": f'"x", {tag}'}).status_code == 304


def test_a_format_that_cannot_be_had_is_refused_before_the_analysis_is_looked_for() -> None:
    _, http = served()
    answer = http.get(f"/v1/analyses/{NEW}/report", headers={"Accept": "application/pdf"})
    assert (answer.status_code, answer.headers["content-type"]) == (406, "application/problem+json")


def test_a_preliminary_report_is_marked_and_not_kept_by_anybody() -> None:
    running = made(status=Status.RUNNING, preliminary=True)
    deployment, http = served(running)
    deployment.reports.early[running.owned, "json"] = b"early"
    answer = http.get(f"/v1/analyses/{NEW}/report")
    assert (answer.text, answer.headers["layerdrift-report"]) == ("early", "preliminary")
    assert (answer.headers["cache-control"], "etag" in answer.headers) == ("no-store", False)


@pytest.mark.parametrize("path", ["report", "artifacts"])
def test_a_preliminary_report_that_redis_has_lost_is_said_to_be_preliminary(path: str) -> None:
    _, http = served(made(status=Status.RUNNING, preliminary=True))
    answer = http.get(f"/v1/analyses/{NEW}/{path}")
    assert answer.status_code == 409
    assert answer.json()["detail"] == "the analysis is running, and its report is preliminary"


def test_a_preliminary_report_of_a_finished_analysis_is_never_shown() -> None:
    finished = made(status=Status.SUCCEEDED, preliminary=True)
    deployment, http = served(finished)
    deployment.reports.early[finished.owned, "json"] = b"early"
    deployment.reports.finished[finished.owned, "json"] = b"late"
    assert http.get(f"/v1/analyses/{NEW}/report").text == "late"


def test_links_to_artifacts_last_as_long_as_the_settings_say() -> None:
    finished = made(status=Status.SUCCEEDED)
    deployment, http = served(finished, link_seconds=77)
    listed = {"reports/x": {"name": "report.json", "media_type": "application/json", "bytes": 2, "sha256": "0" * 64}}
    deployment.blobs.objects[key_names.artifact_list(finished.owned)] = json.dumps(listed).encode()
    (item,) = http.get(f"/v1/analyses/{NEW}/artifacts").json()["items"]
    assert (item["name"], item["url"]) == ("report.json", "https://s3.test/reports/x?seconds=77")


class Evaluated:
    """Stands for the process that evaluates: remembers what it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[Any, ...]] = []
        monkeypatch.setattr(evaluate, "verdict", self.evaluate)
        monkeypatch.setattr(evaluate, "comparison", self.evaluate)

    async def evaluate(self, *given: Any) -> bytes:
        self.asked.append(given)
        return b'{"evaluated": true}'


def both() -> tuple[ServiceDeployment, TestClient]:
    deployment, http = served(made(OLD, 60, status=Status.SUCCEEDED), made(NEW, status=Status.SUCCEEDED))
    for one in deployment.jobs.records.values():
        deployment.reports.finished[one.owned, "json"] = one.id.encode()
    return deployment, http


def test_a_comparison_is_of_both_reports_in_the_order_of_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated, (_, http) = Evaluated(monkeypatch), both()
    answer = http.get(f"/v1/analyses/{OLD}/compare/latest")
    assert (answer.json(), answer.headers["content-type"]) == ({"evaluated": True}, "application/json")
    assert evaluated.asked == [(OLD.encode(), NEW.encode())]


@pytest.mark.parametrize(("baseline", "expected"), [(None, None), (OLD, OLD.encode())])
def test_a_policy_is_evaluated_against_its_baseline_where_it_names_one(
    monkeypatch: pytest.MonkeyPatch, baseline: str | None, expected: bytes | None
) -> None:
    evaluated, (_, http) = Evaluated(monkeypatch), both()
    answer = http.post(f"/v1/analyses/{NEW}/gate", json={"rules": [RULE], "baseline": baseline})
    assert answer.status_code == 200, answer.text
    ((policy, report, earlier),) = evaluated.asked
    assert (policy.rules[0].id, report, earlier) == ("r", NEW.encode(), expected)


def test_a_baseline_that_is_not_there_is_an_error_and_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated, (_, http) = Evaluated(monkeypatch), both()
    body = {"rules": [RULE], "baseline": "no such name"}
    assert http.post(f"/v1/analyses/{NEW}/gate", json=body).status_code == 404
    assert evaluated.asked == []
