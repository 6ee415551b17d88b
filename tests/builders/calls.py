"""Requests to a running service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from tests.builders.texts import make_texts

WAIT_SECONDS = 240.0


def body(base: Path, tuned: Path, **changes: Any) -> dict[str, Any]:
    return {
        "base": {"uri": base.as_uri()},
        "tuned": {"uri": tuned.as_uri()},
        "dataset": {"inline": {"texts": make_texts(60)}},
        "analysis": {"sae": None},
    } | changes


def uploaded(http: httpx.Client, filename: str, content: bytes, **declared: Any) -> dict[str, Any]:
    announced = http.post("/v1/uploads", json={"filename": filename, **declared})
    assert announced.status_code == 201
    assert announced.json()["status"] == "waiting"
    answer = http.put(announced.headers["Location"], content=content)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found
