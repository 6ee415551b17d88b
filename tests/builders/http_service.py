"""The service's HTTP interface in memory: the clients send requests to it, and it answers what a test says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydantic import BaseModel

Answer = BaseModel | dict[str, Any] | str | Callable[[httpx.Request], httpx.Response]


@dataclass
class HttpService:
    """Answers by method and path; what has none is not found.

    Attributes:
        answers: by `GET /v1/analyses/an_x`, one answer or several in turn, of which the last one stays: a model or an
            object is sent as JSON, a string as text, a function is called with the request.
        seen: the requests.
        pauses: seconds that the clients would have slept.
    """

    answers: dict[str, Answer | list[Answer]] = field(default_factory=dict)
    seen: list[httpx.Request] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        found = self.answers.get(f"{request.method} {request.url.path}")
        if found is None:
            return problem(404, f"nothing at {request.url.path}")
        if isinstance(found, list):
            found = found.pop(0) if len(found) > 1 else found[0]
        if isinstance(found, BaseModel):
            return httpx.Response(200, text=found.model_dump_json())
        if isinstance(found, dict):
            return httpx.Response(200, json=found)
        if isinstance(found, str):
            return httpx.Response(200, text=found)
        return found(request)

    @property
    def asked(self) -> list[str]:
        """Method and path of every request."""
        return [f"{request.method} {request.url.path}" for request in self.seen]

    def sent(self, number: int = -1) -> Any:
        """The JSON that a request carried."""
        return json.loads(self.seen[number].content)


def problem(
    status: int, detail: str, errors: list[dict[str, str]] | None = None, headers: dict[str, str] | None = None
) -> httpx.Response:
    """An error as the service tells it."""
    body = {"type": "urn:layerdrift:x", "title": "t", "status": status, "detail": detail, "errors": errors or []}
    return httpx.Response(status, json=body, headers=headers)
