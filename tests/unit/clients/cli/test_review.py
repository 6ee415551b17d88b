"""`review` and `gate`: the verdict, what is written, and the exit code that a pipeline sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from layerdrift.cli.exits import Code
from layerdrift.cli.main import app
from layerdrift.cli.options import PolicyOptions
from layerdrift.cli.review import Asking
from layerdrift.contract.errors import InputError
from layerdrift.contract.policy import Verdict
from layerdrift.contract.report import Report
from layerdrift.sdk import Client
from tests.builders.analyses import ANALYSIS_ID, analysis
from tests.builders.http_service import HttpService, problem
from tests.builders.policies import check, verdict
from tests.builders.reports import changed, preliminary, report, sound, sound_language

PLACE = f"/v1/analyses/{ANALYSIS_ID}"
PAIR = ["--base", "s3://m/a", "--tuned", "s3://m/b", "--dataset", "s3://d/x.csv"]
PASSED = verdict("pass", check(), analysis_id=ANALYSIS_ID)
FAILED = verdict("fail", check("fail"), analysis_id=ANALYSIS_ID)
RATIO = "{id: ratio, path: 'layers[0].drift', of_baseline: ratio, max: 2, message: m}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def policy(*rules: str) -> str:
    """The path of a policy of these rules."""
    path = Path("policy.yaml")
    path.write_text("\n".join(["rules:", *(f"- {rule}" for rule in rules)]) + "\n")
    return str(path)


def limit(index: int, most: float, severity: str = "fail") -> str:
    path = f"'layers[{index}].drift'"
    return f"{{id: layer-{index}, path: {path}, max: {most}, severity: {severity}, message: it moved}}"


def report_file(given: Report) -> str:
    Path("report.json").write_text(given.model_dump_json())
    return "report.json"


@pytest.fixture
def done(service: HttpService) -> HttpService:
    """A service whose analysis is done."""
    service.answers = {
        "POST /v1/analyses": analysis("queued"),
        f"GET {PLACE}": analysis(),
        f"GET {PLACE}/report": lambda request: httpx.Response(
            200, text="<html>" if request.headers["Accept"] == "text/html" else report().model_dump_json()
        ),
        f"POST {PLACE}/gate": PASSED,
    }
    return service


@pytest.mark.parametrize(
    ("rules", "code", "shown"),
    [
        ([limit(0, 0.5)], Code.PASS, "PASS Policy passed."),
        ([limit(3, 0.5, "warn")], Code.PASS, "WARN Policy passed with warnings."),
        ([limit(0, 0.5), limit(3, 0.5)], Code.GATE, "FAIL Policy failed."),
    ],
)
def test_a_report_is_judged_where_it_lies(service: HttpService, rules: list[str], code: Code, shown: str) -> None:
    found = run("gate", report_file(report()), "--policy", policy(*rules))
    assert (found.exit_code, shown in found.stdout) == (code, True)
    assert service.seen == []


def test_without_a_policy_the_starter_policy_judges() -> None:
    assert run("gate", report_file(sound())).exit_code == Code.PASS
    assert run("gate", report_file(report())).exit_code == Code.GATE
    assert run("gate", report_file(sound_language())).exit_code == Code.PASS
    stuck = changed("warnings", [{"code": "never_stops", "message": "m"}], sound_language())
    assert run("gate", report_file(stuck)).exit_code == Code.GATE


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "report.json is not a layerdrift report"),
        ("no json", "report.json is not a layerdrift report"),
        (None, "report.json does not exist"),
        (preliminary(("sae", None)).model_dump_json(), "is preliminary (sae still to come)"),
    ],
    ids=["another file", "no JSON", "absent", "preliminary"],
)
def test_a_file_that_cannot_be_judged_is_neither_a_pass_nor_a_fail(content: str | None, said: str) -> None:
    if content is not None:
        Path("report.json").write_text(content)
    found = run("gate", "report.json", "--policy", policy(limit(0, 0.5)))
    assert (found.exit_code, said in found.stderr) == (Code.USAGE, True)


def test_a_rule_that_no_number_answers_points_at_its_line() -> None:
    found = run("gate", report_file(report()), "--policy", policy(limit(0, 0.5), limit(9, 0.5)))
    assert found.exit_code == Code.USAGE
    said = "error: policy.yaml:3:17: rule layer-9: layers[9].drift matches nothing in this report"
    assert found.stderr.splitlines() == [said]


def test_a_file_has_no_baseline_to_be_compared_with() -> None:
    found = run("gate", report_file(report()), "--policy", policy(RATIO), "--baseline", "latest")
    assert (found.exit_code, "need the service" in found.stderr) == (Code.USAGE, True)


def test_rules_with_a_baseline_need_one_before_anything_is_asked(service: HttpService) -> None:
    found = run("gate", ANALYSIS_ID, "--policy", policy(RATIO))
    assert (found.exit_code, "give an analysis with --baseline" in found.stderr) == (Code.USAGE, True)
    assert service.seen == []


def test_an_analysis_is_judged_by_the_service_under_its_whole_id(done: HttpService) -> None:
    done.answers["GET /v1/analyses/latest"] = analysis()
    done.answers[f"POST {PLACE}/gate"] = FAILED
    found = run("gate", "latest", "--policy", policy(limit(0, 0.5)), "--json")
    assert (found.exit_code, Verdict.model_validate_json(found.stdout)) == (Code.GATE, FAILED)
    assert done.asked == ["GET /v1/analyses/latest", f"POST {PLACE}/gate", f"GET {PLACE}/report"]


def test_a_baseline_may_be_given_as_any_reference_and_goes_before_the_policys(done: HttpService) -> None:
    done.answers["GET /v1/analyses/production"] = analysis(id="an_b")
    Path("policy.yaml").write_text(f"baseline: an_old\nrules:\n- {RATIO}\n")
    run("gate", ANALYSIS_ID, "--policy", "policy.yaml", "--baseline", "production")
    run("gate", ANALYSIS_ID, "--policy", "policy.yaml")
    sent = [json.loads(request.content) for request in done.seen if request.url.path.endswith("/gate")]
    assert [one["baseline"] for one in sent] == ["an_b", "an_old"]


@pytest.mark.parametrize(
    ("pointer", "said"),
    [("/rules/0/path", "policy.yaml:2:17: no such number"), ("/baseline", "no such number"), ("", "no such number")],
)
def test_only_what_the_service_says_of_a_rule_is_given_a_line(done: HttpService, pointer: str, said: str) -> None:
    refused = [{"pointer": pointer, "detail": "no such number"}]
    done.answers[f"POST {PLACE}/gate"] = lambda _: problem(422, "no such number", refused)
    asking = Asking(PolicyOptions(Path(policy(limit(0, 0.5)))))
    with Client() as client, pytest.raises(InputError) as raised:
        asking.of(client, ANALYSIS_ID)
    assert [one.detail for one in raised.value.errors] == [said]


def test_a_review_submits_waits_judges_and_ends_with_the_verdicts_code(done: HttpService) -> None:
    done.answers[f"POST {PLACE}/gate"] = FAILED
    found = run("review", *PAIR)
    assert found.exit_code == Code.GATE
    assert done.asked[0] == "POST /v1/analyses"
    assert f"{ANALYSIS_ID} queued: demo" in found.stderr
    assert f"follow it at http://127.0.0.1:8000/#/a/{ANALYSIS_ID}" in found.stderr
    assert "it moved" in found.stdout


def test_a_review_whose_analysis_fails_is_no_failed_policy(done: HttpService) -> None:
    error = {"type": "x", "title": "t", "status": 422, "detail": "no texts"}
    done.answers[f"GET {PLACE}"] = analysis("failed", error=error)
    found = run("review", *PAIR, "--junit", "o.xml")
    assert (found.exit_code, "no texts" in found.stderr) == (Code.SERVICE, True)
    assert not Path("o.xml").exists()


FILES = {
    "--junit": "o.xml",
    "--markdown": "o.md",
    "--html": "o.html",
    "--report": "o.json",
    "--verdict": "v.json",
}


def test_everything_that_was_asked_for_is_written_even_where_the_policy_failed(done: HttpService) -> None:
    done.answers[f"POST {PLACE}/gate"] = FAILED
    found = run("review", *PAIR, *[part for option in FILES.items() for part in option])
    assert found.exit_code == Code.GATE
    assert Path("o.xml").read_text().startswith("<?xml")
    assert Path("o.md").read_text().startswith("## ❌ Policy failed.")
    assert Path("o.html").read_text() == "<html>"
    assert Report.model_validate_json(Path("o.json").read_text()) == report()
    assert Verdict.model_validate_json(Path("v.json").read_text()) == FAILED
    assert [line for line in found.stderr.splitlines() if line.startswith("wrote ")] == [
        f"wrote {name}" for name in ("o.xml", "o.md", "o.html", "o.json", "v.json")
    ]


def test_the_page_is_fetched_only_where_it_is_written(done: HttpService) -> None:
    run("review", *PAIR, "--markdown", "o.md")
    assert "text/html" not in [request.headers["Accept"] for request in done.seen]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--junit", "absent/o.xml"], "absent does not exist; create the folder first"),
        (["--policy", "absent.yaml"], "absent.yaml: No such file or directory"),
        (["--policy", "wrong.yaml"], "wrong.yaml:1:1: rules: must be a list; it is 1"),
        (["--tag", "x"], "--tag x: write key=value"),
    ],
    ids=["no folder", "no policy", "wrong policy", "wrong option"],
)
def test_what_would_fail_at_the_end_fails_before_anything_is_submitted(
    done: HttpService, arguments: list[str], said: str
) -> None:
    Path("wrong.yaml").write_text("rules: 1")
    found = run("review", *PAIR, *arguments)
    assert (found.exit_code, said in found.stderr, done.seen) == (Code.USAGE, True, [])


def test_a_report_that_holds_what_a_name_may_no_longer_hold_is_still_judged() -> None:
    body: dict[str, Any] = report().model_dump(mode="json")
    body["request"]["name"] = "a\x1bb"
    Path("report.json").write_text(json.dumps(body))
    assert run("gate", "report.json", "--policy", policy(limit(0, 0.5))).exit_code == Code.PASS
