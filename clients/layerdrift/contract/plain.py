"""Names, tags and URIs are one line of characters that can be seen: others would forge lines and move cursors."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, ValidationInfo

CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""C0 and C1 controls, line and paragraph separators, and what turns the direction of writing."""

STORED: Final = {"stored": True}
"""Context in which a record that was accepted before is read: it is not refused for what it holds."""


def visible(text: str) -> str:
    """Control characters as their escapes: `\\x1b` moves no cursor, `\\n` begins no line."""
    return CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def _plain(text: str, info: ValidationInfo) -> str:
    found = CONTROLS.search(text)
    if found and not (info.context or {}).get("stored"):
        raise ValueError(f"control characters are not allowed; found {found[0]!r} at character {found.start() + 1}")
    return text


Plain = Annotated[str, AfterValidator(_plain)]
"""A string without control characters."""
