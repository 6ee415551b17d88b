"""`layerdrift usage`: what was used beside what may be."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from layerdrift.cli.main import app
from tests.builders.http_service import HttpService

USAGE: dict[str, Any] = {
    "tenant": "search",
    "month": "2026-11",
    "gpu_seconds": 5400.0,
    "cpu_seconds": 0.0,
    "storage_bytes": None,
    "open_jobs": 2,
    "quota": {"gpu_seconds": 36000, "open_jobs": 20},
    "resets_at": "2026-12-01T00:00:00Z",
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["usage", *arguments])


def test_each_has_a_line_with_its_quota_and_when_it_frees(service: HttpService) -> None:
    service.answers = {"GET /v1/usage": USAGE}
    lines = [line.split() for line in run().stdout.splitlines()]
    assert lines[0][:2] == ["Tenant", "search,"]
    assert ["GPU", "seconds", "5,400", "36,000", "2026-12-01", "00:00", "UTC"] in lines
    assert ["CPU", "seconds", "0", "none"] in lines
    assert ["stored", "bytes", "none", "found", "yet", "none"] in lines
    assert ["open", "jobs", "2", "20", "when", "one", "ends"] in lines


def test_another_tenant_is_asked_for_by_name(service: HttpService) -> None:
    service.answers = {"GET /v1/usage": USAGE}
    found = json.loads(run("--tenant", "search", "--json").stdout)
    assert (found["gpu_seconds"], found["quota"]["open_jobs"]) == (5400.0, 20)
    assert service.seen[-1].url.params["tenant"] == "search"
