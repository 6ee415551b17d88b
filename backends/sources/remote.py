"""Requests to servers that keep checkpoints, such as a hub or a tracking server, with errors that name the setting."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from backends.sources.locations import CHUNK_BYTES
from layerdrift.contract.errors import DeniedError, NotFoundError, UnavailableError

_SECONDS = 60.0


class Remote:
    """GET requests to one server on behalf of one URI of a request.

    Args:
        what: the server, for messages. opened_by: the setting that must open what is private.

    Raises (each call):
        NotFoundError: the server has no such thing.
        DeniedError: it refuses, and the service's credentials do not help.
        UnavailableError: it is unavailable.
    """

    def __init__(self, what: str, url: str, uri: str, auth: httpx.Auth | None, opened_by: str) -> None:
        self._what = what
        self._url = url.rstrip("/")
        self._uri = uri
        self._auth = auth
        self._opened_by = opened_by

    def json(self, call: str, **params: str) -> dict[str, Any]:
        """The answer to a call of the server's API."""
        with self._asked(call, params=params) as answer:
            body = answer.read()
        try:
            found: dict[str, Any] = json.loads(body)
        except ValueError as error:
            raise UnavailableError(f"the {self._what} returned no JSON for {self._uri}; is its URL right?") from error
        if not isinstance(found, dict):
            raise UnavailableError(f"the {self._what} returned no JSON object for {self._uri}; is its URL right?")
        return found

    def head(self, path: str, length: int) -> bytes:
        """The first bytes of a file."""
        with self._asked(path, headers={"Range": f"bytes=0-{length - 1}"}) as answer:
            found = bytearray()
            for chunk in answer.iter_bytes(CHUNK_BYTES):
                found += chunk
                if len(found) >= length:
                    break
            return bytes(found[:length])

    def chunks(self, path: str) -> Iterator[bytes]:
        """A file's bytes."""
        with self._asked(path) as answer:
            yield from answer.iter_bytes(CHUNK_BYTES)

    @contextmanager
    def _asked(
        self, path: str, params: dict[str, str] | None = None, headers: dict[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        url = self._url + path
        given: dict[str, Any] = {"params": params, "headers": headers, "auth": self._auth}
        try:
            with httpx.stream("GET", url, **given, follow_redirects=True, timeout=_SECONDS) as answer:
                if answer.status_code == 404:
                    raise NotFoundError(f"{self._uri} does not exist on {self._url}")
                if answer.status_code in (401, 403):
                    raise DeniedError(
                        f"{self._uri} is private or gated; set {self._opened_by} to credentials that can read it"
                    )
                if answer.is_error:
                    raise UnavailableError(f"the {self._what} returned {answer.status_code} for {self._uri}")
                yield answer
        except httpx.HTTPError as error:
            raise UnavailableError(f"the {self._what} could not be reached for {self._uri}: {error}") from error


class Bearer(httpx.Auth):
    """A token, which httpx takes off where another host is redirected to."""

    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request
