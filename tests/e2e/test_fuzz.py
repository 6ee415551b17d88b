"""Requests made from the OpenAPI document, against the running service: what it documents is what it does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.api_keys import new_key
from backends.deployment import Deployment
from deploy.embedded.ports import choose
from deploy.embedded.stack import Stack

CONFIG = """
[checks]
negative_data_rejection.expected-statuses = [
  "400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "429"
]
"""
"""With 413: arrays that are too long are refused by their bytes first."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that asks for keys."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LAYERDRIFT_")}
    named = {
        "LAYERDRIFT_HOME": str(tmp_path_factory.mktemp("fuzzed")),
        "LAYERDRIFT_ADMIN_KEY": "a key for nobody but these tests",
        "LAYERDRIFT_PORT": str(choose({"api": 0})["api"]),
    }
    with Stack({**clean, **named}) as running:
        yield running


def test_no_request_is_answered_otherwise_than_documented(guarded: Stack, tmp_path: Path) -> None:
    """All checks but one: what is well-formed may still name a checkpoint that is not there, which is 422."""
    scopes = ["read", "submit", "admin"]
    secret = Deployment.connect(guarded.settings).keys.create(new_key(scopes=scopes, requests_per_minute=10**6))
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [str(Path(sys.executable).parent / "st"), "run", f"{guarded.url}/openapi.json"]
    command += ["-H", f"Authorization: Bearer {secret}", "--checks", "all", "--seed", "1", "--max-examples", "40"]
    command += ["--exclude-checks", "positive_data_acceptance", "--phases", "examples,coverage,fuzzing,stateful"]
    command += ["--continue-on-failure", "--request-timeout", "30"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "generated" in done.stdout
    log = (guarded.home / "logs" / "api.log").read_text()
    assert "unforeseen error" not in log
    assert "Traceback" not in log
