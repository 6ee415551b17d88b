"""`layerdrift keys`: what is asked for, and that a secret is printed once and alone."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from layerdrift.cli.exits import Code
from layerdrift.cli.main import app
from tests.builders.http_service import HttpService, problem

KEY: dict[str, Any] = {"id": "key_1", "name": "ci", "scopes": ["read"], "created_at": "2026-01-02T00:00:00Z"}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


@pytest.fixture
def keyed(service: HttpService) -> HttpService:
    """A service that makes and lists keys."""
    service.answers = {
        "POST /v1/keys": KEY | {"secret": "ld_secret"},
        "GET /v1/keys": {"items": [KEY]},
        "DELETE /v1/keys/key_1": lambda _: httpx.Response(204),
    }
    return service


def test_the_secret_is_all_that_is_printed(keyed: HttpService) -> None:
    assert run("create", "--name", "ci").stdout == "ld_secret\n"
    assert json.loads(run("create", "--name", "ci", "--json").stdout)["secret"] == "ld_secret"


def test_limits_that_are_not_given_are_left_to_the_service(keyed: HttpService) -> None:
    run("create")
    assert keyed.sent() | {"scopes": sorted(keyed.sent()["scopes"])} == {"name": "", "scopes": ["read", "submit"]}
    run("create", "--scope", "admin", "--requests-per-minute", "60", "--open-jobs", "3", "--priority", "0")
    limits = {"requests_per_minute": 60, "open_jobs": 3, "priority": 0}
    assert keyed.sent() == {"name": "", "scopes": ["admin"], **limits}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--scope", "write"],
        ["--priority", "10"],
        ["--priority", "-1"],
        ["--requests-per-minute", "0"],
        ["--open-jobs", "1000001"],
        ["--name", "a\nb"],
        ["--name", "x" * 201],
    ],
    ids=lambda one: " ".join(one)[:30],
)
def test_a_key_that_cannot_be_is_not_asked_for(keyed: HttpService, arguments: list[str]) -> None:
    found = run("create", *arguments)
    assert (found.exit_code, found.stdout, keyed.seen) == (Code.USAGE, "", [])


def test_a_list_shows_what_a_key_may_do_and_no_secret(keyed: HttpService) -> None:
    keyed.answers["GET /v1/keys"] = {"items": [KEY | {"secret": "ld_secret", "scopes": ["submit", "read"]}]}
    last = run("list").stdout.splitlines()[-1]
    assert last.split() == ["key_1", "ci", "read,", "submit", "600", "100", "5", "2026-01-02"]
    assert "ld_secret" not in run("list", "--json").stdout


def test_a_service_without_keys_says_that_it_asks_for_none(keyed: HttpService) -> None:
    keyed.answers["GET /v1/keys"] = {"items": []}
    assert run("list").stdout.startswith("No API keys: the service asks for none.")
    assert json.loads(run("list", "--json").stdout) == []


def test_a_revocation_says_nothing_but_to_a_script(keyed: HttpService) -> None:
    found = run("revoke", "key_1")
    assert (found.exit_code, found.stdout, keyed.asked) == (0, "", ["DELETE /v1/keys/key_1"])
    assert json.loads(run("revoke", "key_1", "--json").stdout) == {"id": "key_1", "revoked": True}


def test_a_key_that_is_not_made_is_not_asked_for_twice(keyed: HttpService) -> None:
    keyed.answers["POST /v1/keys"] = lambda _: problem(503, "Redis is unavailable")
    found = run("create")
    assert (found.exit_code, found.stdout, len(keyed.seen)) == (Code.SERVICE, "", 1)
