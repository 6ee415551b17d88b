"""The size of a JSON text, its fields and levels, counted while its bytes come: what is too much is not parsed.

No parser is needed for it: what stands between quotes is skipped, and brackets are counted in the rest.
"""

from __future__ import annotations

from layerdrift.contract.errors import InputError

MAX_STRUCTURE_BYTES = 64 << 10
"""Of a body without what stands between its quotes: brackets, commas, numbers, the quotes themselves."""

MAX_DEPTH = 32
MAX_ESCAPES = 1_500_000
"""As many as 8 MiB of text in which every character is written as \\u and four digits."""

MAX_FIELDS = 2_500
"""Of all objects together; a policy of 200 rules has 2,200."""

_NOT_UTF8 = (b"\xff\xfe", b"\xfe\xff")
_BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))


class JsonStructure:
    """What has come of one JSON text; the time that it takes is linear in its length, the memory constant."""

    def __init__(self) -> None:
        self._head = b""
        self._escape = b""
        self._in_string = False
        self._size = 0
        self._depth = 0
        self._escapes = 0
        self._fields = 0

    def feed(self, part: bytes) -> None:
        """The next bytes.

        Raises:
            InputError: there are too many values, fields, levels or escapes, or the text is UTF-16 or UTF-32, which
                json would read.
        """
        if len(self._head) < 4:
            self._head += part[: 4 - len(self._head)]
            if self._head.startswith(_NOT_UTF8) or b"\0" in self._head:
                raise InputError("the body is not JSON in UTF-8")
        self._escapes += part.count(b"\\")
        if self._escapes > MAX_ESCAPES:
            raise InputError(f"the body has more than {MAX_ESCAPES} backslashes; send the data as an upload")
        outside, *rest = self._without_escapes(part).split(b'"')
        pieces = [outside, *rest][self._in_string :: 2]
        structure = b"".join(pieces)
        self._in_string ^= len(rest) % 2 == 1
        self._size += len(structure) + len(rest)
        if self._size > MAX_STRUCTURE_BYTES:
            raise InputError(
                f"the body has more than {MAX_STRUCTURE_BYTES} characters of JSON outside its texts; send the data "
                "as an upload"
            )
        self._fields += structure.count(b":")
        if self._fields > MAX_FIELDS:
            raise InputError(f"the body has more than {MAX_FIELDS} fields, more than any request needs")
        for bracket in structure.translate(None, _NO_BRACKETS):
            self._depth += 1 if bracket in b"[{" else -1
            if self._depth > MAX_DEPTH:
                raise InputError(f"the body is nested more than {MAX_DEPTH} levels deep, more than any request needs")

    def _without_escapes(self, part: bytes) -> bytes:
        """The bytes without backslashes and the quotes they escape; one at the end waits for what it escapes."""
        part = self._escape + part
        backslashes = len(part) - len(part.rstrip(b"\\"))
        self._escape = b"\\" * (backslashes % 2)
        return part[: len(part) - len(self._escape)].replace(b"\\\\", b"").replace(b'\\"', b"")
