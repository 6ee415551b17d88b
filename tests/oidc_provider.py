"""A real OpenID Connect provider on loopback, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from deploy.embedded.ports import choose

_RUN = """
import json, signal, sys
from oidc_provider_mock import User, run_server_in_thread
users = [User(sub=name, claims=claims) for name, claims in json.loads(sys.argv[2]).items()]
with run_server_in_thread(port=int(sys.argv[1]), require_nonce=True, user_claims=users):
    signal.pause()
"""
SECONDS = 30.0


@contextmanager
def provider(people: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The issuer's address. people: claims by name; the form has a button for each."""
    port = choose({"oidc": 0})["oidc"]
    issuer = f"http://localhost:{port}"
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", _RUN, str(port), json.dumps(people)])
    try:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{issuer}/.well-known/openid-configuration").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield issuer
    finally:
        process.kill()
        process.wait()


def sign_in_as(person: str, url: str) -> str:
    """What a browser does at the provider: sends its form; where it is sent back to."""
    answer = httpx.post(url, data={"sub": person})
    return str(answer.headers["location"])
