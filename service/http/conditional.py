"""Conditional requests: an answer that the client has already is not sent again (RFC 9110, section 13)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from fastapi import Response


def etag_of(body: bytes) -> str:
    """A strong entity tag."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names an entity tag; weak ones compare alike here."""
    if if_none_match is None:
        return False
    named = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in named or etag in named


def conditional(
    body: bytes, media_type: str, if_none_match: str | None, headers: Mapping[str, str], etag: str | None = None
) -> Response:
    """The body with its entity tag, or 304 where the client has it."""
    tag = etag or etag_of(body)
    told = {**headers, "ETag": tag}
    if matches(if_none_match, tag):
        return Response(status_code=304, headers=told)
    return Response(body, headers={**told, "Content-Type": media_type})
