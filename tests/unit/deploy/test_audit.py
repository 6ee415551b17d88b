from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from deploy import audit

SOUND = {"name": "numpy", "version": "2", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "no such project"}


def vulnerable(*fixed: str) -> dict[str, object]:
    return {"name": "jinja2", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": list(fixed)}]}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([SOUND], 0, "1 of 1 packages audited, 0 vulnerabilities\n"),
        ([SOUND, SKIPPED], 0, "1 of 2 packages audited, 0 vulnerabilities\n"),
        ([SKIPPED], 0, "not audited: the data base of vulnerabilities could not be reached\n"),
        ([], 0, "not audited: the data base of vulnerabilities could not be reached\n"),
        (
            [SOUND, vulnerable("2", "3")],
            1,
            "jinja2 1: CVE-1, mended in 2, 3\n2 of 2 packages audited, 1 vulnerabilities\n",
        ),
        ([vulnerable()], 1, "jinja2 1: CVE-1, mended in no version yet\n1 of 1 packages audited, 1 vulnerabilities\n"),
    ],
)
def test_vulnerable_packages_are_named_and_those_not_looked_up_counted(
    capsys: pytest.CaptureFixture[str], packages: list[dict[str, object]], code: int, said: str
) -> None:
    assert audit.report(packages) == code
    assert capsys.readouterr().out == said


def answered(monkeypatch: pytest.MonkeyPatch, stdout: str, stderr: str = "", code: int = 0) -> None:
    """pip-audit says this."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, code, stdout, stderr)

    monkeypatch.setattr(subprocess, "run", run)


def test_a_vulnerability_is_found_though_pip_audit_fails_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answered(monkeypatch, json.dumps({"dependencies": [vulnerable("2")], "fixes": []}), "Found 1", code=1)
    assert audit.main() == 1


@pytest.mark.parametrize(
    ("stdout", "stderr", "said"),
    [
        ("", "Traceback\n  …\nConnectionError: pypi.org", "not audited: ConnectionError: pypi.org\n"),
        ("", "", "not audited: no answer\n"),
        ("Error: <html>", "\n  too busy  \n", "not audited: too busy\n"),
        ("{}", "", "not audited: no answer\n"),
    ],
)
def test_where_nothing_could_be_looked_up_it_says_why_and_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stdout: str, stderr: str, said: str
) -> None:
    answered(monkeypatch, stdout, stderr, code=1)
    assert audit.main() == 0
    assert capsys.readouterr().out == said
