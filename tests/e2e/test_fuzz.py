"""Requests made from the OpenAPI document, against the running service: what it documents is what it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backends.api_keys import new_key
from backends.deployment import Deployment
from deploy.embedded.stack import Stack

CONFIG = """
[checks]
negative_data_rejection.expected-statuses = [
  "400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "429"
]
"""
"""With 413: arrays that are too long are refused by their bytes first."""


@pytest.mark.parametrize("examples", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_no_request_is_answered_otherwise_than_documented(keyed: Stack, tmp_path: Path, examples: int) -> None:
    """All checks but one: what is well-formed may still name a checkpoint that is not there, which is 422."""
    log = keyed.home / "logs" / "api.log"
    before = log.stat().st_size
    scopes = ["read", "submit", "admin"]
    secret = Deployment.connect(keyed.settings).keys.create(new_key(scopes=scopes, requests_per_minute=10**6))
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [str(Path(sys.executable).parent / "st"), "run", f"{keyed.url}/openapi.json"]
    command += [
        "-H",
        f"Authorization: Bearer {secret}",
        "--checks",
        "all",
        "--seed",
        "1",
        "--max-examples",
        str(examples),
    ]
    command += ["--exclude-checks", "positive_data_acceptance", "--phases", "examples,coverage,fuzzing,stateful"]
    command += ["--continue-on-failure", "--request-timeout", "30"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "generated" in done.stdout
    written = log.read_bytes()[before:]
    assert b"unforeseen error" not in written
    assert b"Traceback" not in written
