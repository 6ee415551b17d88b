"""The commands, against a service in memory: what they ask, what they print where, and their exit codes."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from layerdrift import __version__
from layerdrift.cli.exits import Code
from layerdrift.cli.main import app
from layerdrift.contract.comparison import compare
from layerdrift.contract.report import Report
from layerdrift.render import sentences
from tests.builders.analyses import ANALYSIS_ID, analysis
from tests.builders.http_service import HttpService, problem
from tests.builders.reports import preliminary, report

PLACE = f"/v1/analyses/{ANALYSIS_ID}"
PAIR = ["--base", "s3://m/a", "--tuned", "s3://m/b", "--dataset", "s3://d/x.csv"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(app, arguments, **options)


def in_formats(request: httpx.Request) -> httpx.Response:
    """The report as it was asked for."""
    bodies = {"text/html": "<html>", "text/markdown": "# demo", "application/json": report().model_dump_json()}
    return httpx.Response(200, text=bodies[request.headers["Accept"]])


def test_the_version_needs_no_service(service: HttpService) -> None:
    assert run("--version").stdout == f"{__version__}\n"
    assert service.seen == []


def test_a_submission_prints_its_id_alone(service: HttpService) -> None:
    service.answers["POST /v1/analyses"] = analysis("queued")
    found = run("submit", *PAIR, "--seed", "3")
    assert (found.exit_code, found.stdout) == (0, f"{ANALYSIS_ID}\n")
    assert service.sent()["seed"] == 3
    assert json.loads(run("submit", *PAIR, "--json").stdout)["status"] == "queued"


def test_an_estimate_submits_nothing(service: HttpService) -> None:
    stages = [{"stage": "extract", "seconds": 100}]
    estimated = {"seconds": 150, "first_curve_seconds": 100, "stages": stages, "basis": "reference", "queued_before": 2}
    sizes = {"memory_bytes": 3 << 30, "scratch_bytes": 1 << 29, "download_bytes": 7 << 20}
    service.answers["POST /v1/estimates"] = estimated | sizes
    said = run("estimate", *PAIR).stdout
    assert "About 2 min 30 s in all, the first drift curve after 1 min 40 s" in said
    assert "2 queued analyses come first." in said
    assert "about 3.0 GiB. Scratch on its disk: about 0.5 GiB. Files to fetch: 7 MiB." in said
    assert service.asked == ["POST /v1/estimates"]


def test_waiting_ends_with_the_finding(service: HttpService) -> None:
    service.answers = {f"GET {PLACE}": analysis(), f"GET {PLACE}/report": report()}
    assert run("wait", ANALYSIS_ID).stdout == f"{sentences.headline(report())}\n"
    assert Report.model_validate_json(run("wait", ANALYSIS_ID, "--json").stdout) == report()


def test_who_waits_no_longer_gets_the_code_for_it(service: HttpService) -> None:
    service.answers[f"GET {PLACE}"] = analysis("running")
    found = run("wait", ANALYSIS_ID, "--timeout", "0")
    assert (found.exit_code, found.stdout) == (Code.TIMEOUT, "")
    assert "timed out after 0 s" in found.stderr


def test_events_are_a_line_of_json_each_and_a_failure_has_its_code(service: HttpService) -> None:
    events = 'id: 1-0\nevent: stage\ndata: {"name": "resolve"}\n\nid: 2-0\nevent: done\ndata: {}\n\n'
    stream = httpx.Headers({"Content-Type": "text/event-stream"})
    service.answers[f"GET {PLACE}/events"] = lambda _: httpx.Response(200, headers=stream, text=events)
    service.answers[f"GET {PLACE}"] = analysis("cancelled")
    found = run("watch", ANALYSIS_ID, "--json")
    assert [json.loads(line) for line in found.stdout.splitlines()] == [
        {"id": "1-0", "event": "stage", "data": {"name": "resolve"}},
        {"id": "2-0", "event": "done", "data": {}},
    ]
    assert found.exit_code == Code.SERVICE


def test_watching_shows_progress_on_standard_error_and_the_finding_on_standard_output(service: HttpService) -> None:
    service.answers = {f"GET {PLACE}": [analysis("running"), analysis()], f"GET {PLACE}/report": report()}
    found = run("watch", ANALYSIS_ID)
    assert found.stdout == f"{sentences.headline(report())}\n"
    assert found.stderr == "resolve running\n"


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (analysis("queued", queued_before=0), "queued: next in line, waiting for a free worker"),
        (analysis("queued", queued_before=1), "queued: 1 analysis ahead"),
        (
            analysis("failed", error={"type": "x", "title": "Invalid input", "status": 422, "detail": "no texts"}),
            "Invalid input: no texts",
        ),
    ],
    ids=["next", "one ahead", "failed"],
)
def test_a_status_says_why_nothing_happens(service: HttpService, shown: Any, said: str) -> None:
    service.answers[f"GET {PLACE}"] = shown
    found = run("status", ANALYSIS_ID)
    assert (found.exit_code, found.stdout.splitlines()[-1]) == (0, said)


def test_a_list_is_paged_until_it_is_as_long_as_was_asked(service: HttpService) -> None:
    full: dict[str, Any] = {"items": [analysis().model_dump(mode="json")] * 100, "next_cursor": "c1"}
    service.answers["GET /v1/analyses"] = [full, full | {"items": full["items"][:50], "next_cursor": "c2"}]
    assert len(json.loads(run("list", "-n", "150", "--json").stdout)) == 150
    assert [dict(request.url.params) for request in service.seen] == [
        {"limit": "100"},
        {"limit": "50", "cursor": "c1"},
    ]


def test_a_list_ends_with_the_last_page(service: HttpService) -> None:
    service.answers["GET /v1/analyses"] = {"items": [], "next_cursor": None}
    filters = ["--status", "failed", "--name", "v7", "--tag", "team=a=b"]
    assert run("list", *filters).stdout.startswith("No analyses. Submit one with:")
    (request,) = service.seen
    assert dict(request.url.params) == {"limit": "20", "status": "failed", "name": "v7", "tag": "team:a=b"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--tag", "team"],
        ["list", "--tag", "=x"],
        ["list", "-n", "0"],
        ["list", "-n", "1001"],
        ["list", "--status", "done"],
        ["wait", ANALYSIS_ID, "--timeout", "-1"],
        ["report", ANALYSIS_ID, "--open", "--json"],
        ["report", ANALYSIS_ID, "--open", "--format", "md"],
        ["report", ANALYSIS_ID, "--format", "png"],
        ["report", ANALYSIS_ID, "--output", "report"],
        ["report", ANALYSIS_ID, "--output", "report.pdf"],
        ["report", ANALYSIS_ID, "--output", "absent/report.html"],
        ["report", "a/b"],
        ["report", ""],
        ["inspect", ANALYSIS_ID, "  "],
        ["upload", "absent"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_used_is_refused_before_anything_is_asked(service: HttpService, arguments: list[str]) -> None:
    found = run(*arguments)
    assert (found.exit_code, found.stdout, service.seen) == (Code.USAGE, "", [])
    assert found.stderr


@pytest.mark.parametrize(("name", "content"), [("r.html", "<html>"), ("r.MD", "# demo"), ("r.json", None)])
def test_the_suffix_of_a_file_chooses_the_format(
    service: HttpService, folder: Path, name: str, content: str | None
) -> None:
    service.answers[f"GET {PLACE}/report"] = in_formats
    found = run("report", ANALYSIS_ID, "--output", name)
    assert (found.exit_code, found.stdout) == (0, "")
    written = (folder / name).read_text()
    assert written == content if content else Report.model_validate_json(written) == report()
    assert [path.name for path in folder.iterdir()] == [name]


def test_a_format_that_is_given_goes_before_the_suffix(service: HttpService, folder: Path) -> None:
    service.answers[f"GET {PLACE}/report"] = in_formats
    assert run("report", ANALYSIS_ID, "--output", "r.txt", "--format", "md").exit_code == 0
    assert (folder / "r.txt").read_text() == "# demo"
    assert run("report", ANALYSIS_ID, "--format", "html").stdout == "<html>\n"


def test_a_report_is_printed_with_its_finding_its_table_and_its_warnings(service: HttpService) -> None:
    warned = report(warnings=[{"code": "wide_intervals", "message": "few texts"}])
    service.answers[f"GET {PLACE}/report"] = warned
    lines = run("report", ANALYSIS_ID).stdout.splitlines()
    assert lines[0] == sentences.headline(warned)
    assert sentences.outcome(warned) in lines
    assert lines[-2:] == [sentences.advice(warned), "wide_intervals: few texts"]
    assert any(line.startswith("3 block 3") for line in lines)


def test_a_preliminary_report_is_shown_only_where_it_was_asked_for(service: HttpService) -> None:
    early = preliminary(("sae", 60))
    service.answers[f"GET {PLACE}/report"] = lambda _: httpx.Response(
        200, headers={"Layerdrift-Report": "preliminary"}, text=early.model_dump_json()
    )
    assert run("report", ANALYSIS_ID).exit_code == Code.SERVICE
    assert run("report", ANALYSIS_ID, "--preliminary").stdout.startswith("Preliminary report:")


@pytest.mark.parametrize("arguments", [[], ["--format", "html"], ["--output", "page.html"]], ids=" ".join)
def test_the_page_is_opened_in_a_browser(
    service: HttpService, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    opened: list[str] = []

    def browser(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr(webbrowser, "open", browser)
    service.answers[f"GET {PLACE}/report"] = in_formats
    assert run("report", ANALYSIS_ID, "--open", *arguments).exit_code == 0
    (page,) = folder.iterdir()
    assert page.name == (arguments[1] if "--output" in arguments else f"{ANALYSIS_ID}.html")
    assert (opened, page.read_text()) == ([page.as_uri()], "<html>")


def test_without_a_browser_the_page_is_kept_and_its_place_said(
    service: HttpService, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    service.answers[f"GET {PLACE}/report"] = in_formats
    found = run("report", ANALYSIS_ID, "--open", "--output", "page.html")
    assert (found.exit_code, "found no browser; the page is in page.html" in found.stderr) == (Code.USAGE, True)
    assert (folder / "page.html").read_text() == "<html>"


def test_two_reports_are_compared_second_less_first(service: HttpService) -> None:
    other = report(analysis_id="an_other")
    other.layers[2].drift -= 0.5
    service.answers[f"GET {PLACE}/compare/other"] = compare(report(), other)
    assert "-0.500" in run("compare", ANALYSIS_ID, "other").stdout
    found = json.loads(run("compare", ANALYSIS_ID, "other", "--json").stdout)
    assert found["layers"][2]["drift"]["difference"] == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("status", "said"), [("running", f"{ANALYSIS_ID} is stopping"), ("cancelled", f"{ANALYSIS_ID} cancelled")]
)
def test_a_cancellation_says_whether_it_has_ended(service: HttpService, status: str, said: str) -> None:
    service.answers[f"POST {PLACE}/cancel"] = analysis(status)
    assert run("cancel", ANALYSIS_ID).stdout == f"{said}\n"


def test_a_rerun_names_the_analysis_that_it_made(service: HttpService) -> None:
    service.answers[f"POST {PLACE}/rerun"] = analysis("queued")
    assert run("rerun", ANALYSIS_ID).stdout == f"{ANALYSIS_ID} queued\n"
    assert json.loads(run("rerun", ANALYSIS_ID, "--json").stdout)["status"] == "queued"


def test_a_deletion_says_nothing_but_to_a_script(service: HttpService) -> None:
    service.answers[f"DELETE {PLACE}"] = lambda _: httpx.Response(204)
    found = run("delete", ANALYSIS_ID)
    assert (found.exit_code, found.stdout) == (0, "")
    assert json.loads(run("delete", ANALYSIS_ID, "--json").stdout) == {"id": ANALYSIS_ID, "deleted": True}


def test_an_upload_prints_the_uri_to_use(service: HttpService, folder: Path) -> None:
    (folder / "texts.csv").write_text("text\nfine\n")
    created = {"created_at": "2026-01-01T00:00:00Z", "status": "complete"}
    service.answers["POST /v1/uploads"] = {"id": "up_x", "uri": "upload://up_x", "filename": "texts.csv", **created}
    assert run("upload", "texts.csv").stdout == "upload://up_x\n"
    assert json.loads(run("upload", "texts.csv", "--json").stdout) == {"uri": "upload://up_x"}


def test_texts_are_read_from_standard_input_without_its_blank_lines(service: HttpService) -> None:
    service.answers["POST /v1/inspect"] = {"analysis_id": ANALYSIS_ID, "texts": []}
    assert run("inspect", ANALYSIS_ID, "-", input="one\n\n  \ntwo \n").exit_code == 0
    assert service.sent() == {"analysis_id": ANALYSIS_ID, "texts": ["one", "two "], "completion_tokens": 24}


def test_of_an_inspection_each_token_is_a_row_and_excluded_ones_have_no_number(service: HttpService) -> None:
    layer = {"drift": [None, 0.25], "base_norm": [1, 1], "tuned_norm": [1, 1]}
    text = {"text": "fine", "tokens": ["[CLS]", "fine"], "special": [True, False], "truncated": False}
    service.answers["POST /v1/inspect"] = {"analysis_id": ANALYSIS_ID, "texts": [text | {"layers": [layer, layer]}]}
    lines = run("inspect", ANALYSIS_ID, "fine").stdout.splitlines()
    assert [line.split() for line in lines[-2:]] == [["[CLS]"], ["fine", "0.250", "0.250"]]


def test_of_language_models_an_inspection_has_what_both_say_next(service: HttpService) -> None:
    layer = {"drift": [None, 0.25], "base_norm": [1, 1], "tuned_norm": [1, 1]}
    told = {"divergence": 1.5, "base": [{"token": " [b]day", "probability": 0.5}], "tuned": []}
    text = {"text": "fine", "tokens": ["a", "fine"], "special": [True, False], "truncated": False, "layers": [layer]}
    text |= {"next_tokens": [told, told], "completions": {"base": "a\n day", "tuned": "[red] \x1b[31m"}}
    service.answers["POST /v1/inspect"] = {"analysis_id": ANALYSIS_ID, "texts": [text]}
    lines = run("inspect", ANALYSIS_ID, "fine").stdout.splitlines()
    assert "fine" in lines[-3]
    assert "1.50" in lines[-3]
    assert "“␣[b]day” 50.0 %" in lines[-3]
    assert lines[-2] == "continuation, base model:  a day"
    assert lines[-1].startswith("continuation, tuned model: [red]")
    assert "\x1b" not in lines[-1]


@pytest.mark.parametrize(
    ("status", "code"), [(404, Code.SERVICE), (401, Code.SERVICE), (422, Code.USAGE), (409, Code.SERVICE)]
)
def test_errors_of_the_service_go_to_standard_error_with_their_code(
    service: HttpService, status: int, code: Code
) -> None:
    service.answers[f"GET {PLACE}"] = lambda _: problem(status, "so it is")
    found = run("status", ANALYSIS_ID)
    assert (found.exit_code, found.stdout, found.stderr) == (code, "", "error: so it is\n")
    assert json.loads(run("status", ANALYSIS_ID, "--json").stderr)["detail"] == "so it is"


def test_a_service_that_is_busy_is_said_to_be_while_it_is_asked_again(service: HttpService) -> None:
    busy = problem(429, "slow down", headers={"Retry-After": "9"})
    service.answers[f"GET {PLACE}"] = [lambda _: busy, analysis()]
    found = run("status", ANALYSIS_ID, "--url", "http://there")
    assert found.exit_code == 0
    assert found.stderr == "http://there answers 429; trying again in 9 s\n"


def test_the_environment_names_the_service_and_an_option_another(service: HttpService) -> None:
    service.answers[f"GET {PLACE}"] = analysis()
    env = {"LAYERDRIFT_URL": "http://variable", "LAYERDRIFT_API_KEY": "ld_x"}
    run("status", ANALYSIS_ID, env=env)
    run("status", ANALYSIS_ID, "--url", "http://option", env=env)
    assert [request.url.host for request in service.seen] == ["variable", "option"]
    assert {request.headers["Authorization"] for request in service.seen} == {"Bearer ld_x"}
