"""`layerdrift policy`: policies are written and checked without a service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from layerdrift import policies
from layerdrift.cli.exits import Code
from layerdrift.cli.main import app
from layerdrift.contract.policy import Policy
from tests.builders.http_service import HttpService

RULE = "- {id: %s, path: 'layers[0].drift', max: 1, message: m}"
COMPARED = "- {id: c, path: 'layers[0].drift', of_baseline: ratio, max: 1, message: m}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: HttpService) -> Path:
    """Commands run in a folder of their own, and ask no service."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["policy", *arguments])


def written(*rules: str) -> str:
    Path("p.yaml").write_text("\n".join(["rules:", *rules]), encoding="utf-8")
    return "p.yaml"


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([RULE % "a"], "p.yaml: 1 rule, no errors"),
        ([RULE % "a", RULE % "b"], "p.yaml: 2 rules, no errors"),
        ([COMPARED], "p.yaml: 1 rule, no errors; needs a baseline"),
    ],
)
def test_a_policy_without_mistakes_says_what_it_needs(rules: list[str], said: str) -> None:
    found = run("check", written(*rules))
    assert (found.exit_code, found.stdout) == (0, f"{said}\n")


def test_every_mistake_has_its_line_and_nothing_is_on_standard_output() -> None:
    found = run("check", written(RULE % "a", RULE % "a b", "- {id: c}"))
    assert (found.exit_code, found.stdout) == (Code.USAGE, "")
    places = [line.split(": ")[1] for line in found.stderr.splitlines()]
    assert places == ["p.yaml:3:4", "p.yaml:4:3", "p.yaml:4:3"]


def test_a_script_gets_the_policy_with_its_defaults_or_every_mistake() -> None:
    rule = Policy.model_validate_json(run("check", written(RULE % "a"), "--json").stdout).rules[0]
    assert (rule.id, rule.severity, rule.if_undefined) == ("a", "fail", "error")
    errors = json.loads(run("check", written("- {id: c}"), "--json").stderr)["errors"]
    assert {one["pointer"] for one in errors} == {"/rules/0/message", "/rules/0/path"}


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b""], ids=["absent", "no text", "empty"])
def test_a_file_that_is_no_policy_is_a_usage_error(content: bytes | None) -> None:
    if content is not None:
        Path("p.yaml").write_bytes(content)
    found = run("check", "p.yaml")
    assert (found.exit_code, found.stdout) == (Code.USAGE, "")
    assert found.stderr.startswith("error: ")


@pytest.mark.parametrize("kind", ["classifier", "language"])
def test_the_starter_policies_that_are_printed_have_no_mistakes(kind: policies.StarterName, folder: Path) -> None:
    printed = run("starter", "--for", kind).stdout
    (folder / "starter.yaml").write_text(printed)
    assert policies.load(printed) == policies.load(policies.starter(kind))
    assert run("check", "starter.yaml").exit_code == 0
    assert kind == "language" or run("starter").stdout == printed


def test_the_schema_knows_every_field_of_a_rule() -> None:
    schema = json.loads(run("schema").stdout)
    assert {"severity", "of_baseline", "skip_if_present"} <= set(schema["$defs"]["Rule"]["properties"])
