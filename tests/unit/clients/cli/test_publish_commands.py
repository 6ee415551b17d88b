"""`layerdrift publish`: where each verdict comes from, and what is needed before anything is published."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from layerdrift.cli import publish_commands
from layerdrift.cli.exits import Code
from layerdrift.cli.main import app
from layerdrift.integrations.comments import GitHubPull, GitLabMerge
from tests.builders.analyses import ANALYSIS_ID, analysis
from tests.builders.http_service import HttpService
from tests.builders.policies import check, verdict
from tests.builders.reports import report

PLACE = f"/v1/analyses/{ANALYSIS_ID}"
NOTES = "/projects/5/merge_requests/7/notes"
ISSUE = "/repos/o/r/issues/7/comments"
RULE = "rules:\n- {id: mine, path: 'layers[0].drift', max: 1, message: m}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in a folder of their own, which is no CI system's."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_TOKEN", "CI_API_V4_URL", "MLFLOW_TRACKING_URI", "LAYERDRIFT_MLFLOW_WEBHOOK_SECRET"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def done(service: HttpService) -> HttpService:
    """A service whose analysis is done, also under the name `latest`."""

    def page(request: httpx.Request) -> httpx.Response:
        html = request.headers["Accept"] == "text/html"
        return httpx.Response(200, text="<html>" if html else report().model_dump_json())

    service.answers = {
        f"GET {PLACE}": analysis(),
        "GET /v1/analyses/latest": analysis(),
        f"GET {PLACE}/report": page,
        "GET /v1/analyses/latest/report": page,
        f"POST {PLACE}/gate": verdict("warn", check("warn"), analysis_id=ANALYSIS_ID),
    }
    return service


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HttpService:
    """GitHub and GitLab with one thread each, which this run belongs to."""

    def created(request: httpx.Request) -> httpx.Response:
        return httpx.Response(201, json={"id": 8, "html_url": "https://github.com/o/r/pull/7#8"})

    made = HttpService(
        {
            "GET /user": {"id": 1, "login": "bot"},
            f"GET {NOTES}": lambda _: httpx.Response(200, json=[]),
            f"POST {NOTES}": created,
            f"GET {ISSUE}": lambda _: httpx.Response(200, json=[]),
            f"POST {ISSUE}": created,
            "POST /projects/5/uploads": {"markdown": "![drift](/uploads/1)"},
        }
    )

    def http() -> httpx.Client:
        return httpx.Client(base_url="http://host", transport=httpx.MockTransport(made))

    monkeypatch.setattr(GitHubPull, "here", lambda: GitHubPull(http(), "o/r", 7, "https://github.com"))
    monkeypatch.setattr(GitLabMerge, "here", lambda: GitLabMerge(http(), "5", 7))
    return made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["publish", *arguments])


def written(**changes: Any) -> str:
    Path("verdict.json").write_text(verdict("fail", check("fail"), **changes).model_dump_json())
    return "verdict.json"


@pytest.mark.parametrize(("command", "place"), [("github", "https://github.com/o/r/pull/7#8"), ("gitlab", "note 8")])
def test_a_comment_has_the_verdict_and_the_report_and_its_place_is_printed(
    done: HttpService, host: HttpService, command: str, place: str
) -> None:
    found = run(command, "latest", "--no-picture", "--comment-name", "nightly")
    assert (found.exit_code, found.stdout) == (0, f"{place}\n")
    body = host.sent()["body"]
    assert body.startswith("<!-- layerdrift:nightly -->\n## ⚠️ Policy passed with warnings.")
    assert "Layer-drift report" in body
    assert json.loads(run(command, "latest", "--no-picture", "--json").stdout) == {"published": place}


def test_the_drift_curve_stands_in_a_comment_unless_that_is_not_wanted(
    done: HttpService, host: HttpService, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = SimpleNamespace(drift_png=lambda given: f"drawn of {given.name}".encode())
    monkeypatch.setitem(sys.modules, "layerdrift.render.picture", drawing)
    run("gitlab", ANALYSIS_ID)
    assert "![drift](/uploads/1)" in host.sent()["body"]
    uploaded = next(request for request in host.seen if request.url.path == "/projects/5/uploads")
    assert f'filename="{ANALYSIS_ID}.png"'.encode() in uploaded.content
    assert b"drawn of demo" in uploaded.content
    host.seen.clear()
    run("gitlab", ANALYSIS_ID, "--no-picture")
    assert "POST /projects/5/uploads" not in host.asked


def test_a_verdict_that_a_review_wrote_is_taken_without_judging_again(done: HttpService, host: HttpService) -> None:
    found = run("gitlab", "latest", "--no-picture", "--verdict", written(analysis_id=ANALYSIS_ID))
    assert found.exit_code == 0
    assert "## ❌ Policy failed." in host.sent()["body"]
    assert f"POST {PLACE}/gate" not in done.asked


def test_a_verdict_on_another_analysis_is_not_published(done: HttpService, host: HttpService) -> None:
    found = run("gitlab", "latest", "--no-picture", "--verdict", written(analysis_id="an_other"))
    assert found.exit_code == Code.USAGE
    assert f"verdict.json is the verdict for an_other, not for {ANALYSIS_ID}" in found.stderr
    assert host.seen == []


@pytest.mark.parametrize(
    ("content", "said"),
    [("{}", "verdict.json is not a verdict"), ("x", "is not a verdict"), (None, "verdict.json: No such file")],
)
def test_a_file_that_holds_no_verdict_is_said_to_before_anything_is_asked(
    done: HttpService, host: HttpService, content: str | None, said: str
) -> None:
    if content is not None:
        Path("verdict.json").write_text(content)
    found = run("github", "latest", "--verdict", "verdict.json")
    assert (found.exit_code, said in found.stderr) == (Code.USAGE, True)
    assert (done.seen, host.seen) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["github", "latest"], "not running in GitHub Actions"),
        (["gitlab", "latest"], "not running in GitLab CI"),
        (["mlflow", "latest", "--version", "models:/m/1"], "MLFLOW_TRACKING_URI must name the MLflow server"),
        (["mlflow-receiver", "reviews.yaml"], "set LAYERDRIFT_MLFLOW_WEBHOOK_SECRET"),
        (["mlflow-receiver", "reviews.yaml", "--secret", "x" * 15], "16 characters or more"),
        (["mlflow-receiver", "reviews.yaml", "--secret", "x" * 16], "MLFLOW_TRACKING_URI must name"),
        (["mlflow-receiver", "reviews.yaml", "--secret", "x" * 16, "--port", "80"], "--port"),
    ],
)
def test_what_this_place_lacks_is_said_before_anything_is_asked(
    done: HttpService, arguments: list[str], said: str
) -> None:
    found = run(*arguments)
    assert (found.exit_code, said in found.stderr, done.seen) == (Code.USAGE, True, [])


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["mlflow", "latest", "--version", "models:/m/1"], "mlflow"),
        (["card", "latest"], "hub"),
        (["wandb", "latest"], "wandb"),
        (["mlflow-receiver", "reviews.yaml", "--secret", "x" * 16], "mlflow"),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else one,
)
def test_an_integration_that_is_not_installed_names_its_extra(
    done: HttpService, monkeypatch: pytest.MonkeyPatch, arguments: list[str], extra: str
) -> None:
    for name in ("mlflow", "mlflow_receiver", "model_card", "wandb"):
        monkeypatch.setitem(sys.modules, f"layerdrift.integrations.{name}", None)
    found = run(*arguments)
    assert found.exit_code == Code.SERVICE
    assert f"this needs the extra {extra}: pip install './clients[{extra}]'" in found.stderr
    assert done.seen == []


def test_a_card_has_a_verdict_only_with_a_policy(done: HttpService, folder: Path) -> None:
    assert run("card", ANALYSIS_ID).stdout == "README.md\n"
    assert "Review:" not in (folder / "README.md").read_text()
    (folder / "policy.yaml").write_text(RULE)
    assert run("card", ANALYSIS_ID, "--file", "card.md", "--policy", "policy.yaml").stdout == "card.md\n"
    assert "Review: Policy passed with warnings." in (folder / "card.md").read_text()
    assert done.sent()["rules"][0]["id"] == "mine"


def integration(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    """Puts another module in the place of an integration."""
    monkeypatch.setitem(sys.modules, f"layerdrift.integrations.{name}", SimpleNamespace(**functions))


def test_a_card_is_pushed_only_where_that_is_asked(done: HttpService, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[str] = []
    integration(monkeypatch, "model_card", put=lambda *_: SimpleNamespace(push_to_hub=pushed.append))
    run("card", ANALYSIS_ID)
    assert pushed == []
    run("card", ANALYSIS_ID, "--push", "owner/model")
    assert pushed == ["owner/model"]


def test_a_model_version_gets_the_report_the_verdict_and_a_link(
    done: HttpService, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []

    def write_back(*given: Any) -> str:
        kept.extend(given)
        return "run-1"

    version = SimpleNamespace(of=lambda uri, _: SimpleNamespace(uri=uri.replace("models:/", "mlflow://")))
    integration(monkeypatch, "mlflow", Version=version, write_back=write_back)
    monkeypatch.setattr(publish_commands, "_mlflow_client", lambda: "registry")
    found = run("mlflow", "latest", "--version", "models:/m/1", "--url", "http://service/")
    assert found.stdout == "mlflow://m/1, run run-1\n"
    registry, _, given, judged, html, link = kept
    assert (registry, given, judged.decision, html) == ("registry", report(), "warn", "<html>")
    assert link == f"http://service{PLACE}/report"


class WandbError(Exception):
    """What the integration raises where W&B cannot be used."""


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[Any]]:
    """Puts W&B in place: a run that is open, or an error instead; returns what is asked of it."""

    def put(opens: Any) -> list[Any]:
        asked: list[Any] = []

        @contextmanager
        def opened(project: str, _: Any, run_id: str | None) -> Iterator[Any]:
            asked.append((project, run_id))
            if isinstance(opens, Exception):
                raise opens
            yield opens

        def log(_: Any, __: Any, judged: Any, html: str) -> None:
            asked.append((judged and judged.decision, html))

        integration(monkeypatch, "wandb", opened=opened, log=log, FAILURES=(WandbError,))
        return asked

    return put


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (SimpleNamespace(url="https://wandb/r", dir="files"), "https://wandb/r\n"),
        (SimpleNamespace(url=None, dir=Path("offline-run")), "offline-run\n"),
    ],
    ids=["online", "offline"],
)
def test_a_run_of_wandb_is_named_by_its_page_or_offline_by_its_folder(
    done: HttpService, wandb: Callable[[Any], list[Any]], made: Any, said: str
) -> None:
    asked = wandb(made)
    assert run("wandb", ANALYSIS_ID, "--project", "p", "--run", "abc").stdout == said
    assert asked == [("p", "abc"), (None, "<html>")]


def test_wandb_that_cannot_be_used_is_an_error_of_its_own(done: HttpService, wandb: Callable[[Any], list[Any]]) -> None:
    wandb(WandbError("no API key"))
    found = run("wandb", ANALYSIS_ID)
    assert (found.exit_code, found.stderr) == (Code.SERVICE, "error: W&B: no API key\n")
