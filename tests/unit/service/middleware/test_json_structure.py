from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerdrift.contract.errors import InputError
from service.middleware.json_structure import MAX_DEPTH, MAX_ESCAPES, MAX_FIELDS, MAX_STRUCTURE_BYTES, JsonStructure

VALUES = st.recursive(
    st.none() | st.integers() | st.text('\\"[]{}:,aé\n', max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text('\\":{a', max_size=4), inside, max_size=3),
    max_leaves=12,
)


def fed(body: bytes, piece: int = 10**7) -> JsonStructure:
    counted = JsonStructure()
    for start in range(0, len(body), piece):
        counted.feed(body[start : start + piece])
    return counted


def refusal(body: bytes, piece: int = 10**7) -> str | None:
    try:
        fed(body, piece)
    except InputError as error:
        return error.detail
    return None


def depth(value: Any) -> int:
    """Levels of a value that has been parsed."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inside is None else 1 + max(map(depth, inside), default=0)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.integers(MAX_DEPTH - 4, MAX_DEPTH), st.integers(1, 5), st.booleans())
def test_levels_are_those_that_a_parser_finds_wherever_the_bytes_are_cut(
    value: Any, around: int, piece: int, ascii_alone: bool
) -> None:
    body = b"[" * around + json.dumps(value, ensure_ascii=ascii_alone).encode() + b"]" * around
    too_deep = depth(json.loads(body)) > MAX_DEPTH
    assert (refusal(body, piece) is not None) == too_deep


@pytest.mark.parametrize(
    ("within", "beyond", "reason"),
    [
        (b"[" * MAX_DEPTH, b"[" * (MAX_DEPTH + 1), "nested more than"),
        (b'{"a":' * MAX_DEPTH, b'{"a":' * (MAX_DEPTH + 1), "nested more than"),
        (b" " * MAX_STRUCTURE_BYTES, b" " * (MAX_STRUCTURE_BYTES + 1), "characters of JSON outside its texts"),
        (b'""' * (MAX_STRUCTURE_BYTES // 2), b'""' * (MAX_STRUCTURE_BYTES // 2) + b'"', "characters of JSON"),
        (b":" * MAX_FIELDS, b":" * (MAX_FIELDS + 1), "fields"),
        (b'"' + b"\\" * MAX_ESCAPES, b'"' + b"\\" * (MAX_ESCAPES + 1), "backslashes"),
    ],
    ids=["lists", "objects", "spaces", "quotes", "fields", "escapes"],
)
def test_as_much_as_may_be_is_taken_and_no_more(within: bytes, beyond: bytes, reason: str) -> None:
    assert refusal(within) is None
    assert reason in str(refusal(beyond))


@pytest.mark.parametrize(
    "inside",
    [b"[" * 50, b"{:," * MAX_STRUCTURE_BYTES, b'\\"[' * 50, b"\\\\\\\\", "é".encode() * 1_000],
    ids=["brackets", "signs", "escaped quotes", "escaped backslashes", "letters"],
)
@pytest.mark.parametrize("piece", [1, 3, 10**7])
def test_what_stands_between_quotes_does_not_count(inside: bytes, piece: int) -> None:
    body = b'["' + inside + b'", ' + b"[" * (MAX_DEPTH - 1)
    assert refusal(body, piece if len(body) < 10_000 else 10**7) is None
    assert refusal(body + b"[") is not None


@pytest.mark.parametrize("text", ["{}", "1", '"é"', "\ufeff{}"])
def test_texts_in_utf_8_are_looked_at(text: str) -> None:
    assert refusal(text.encode()) is None


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("piece", [1, 2, 100])
def test_texts_in_which_quotes_have_more_bytes_are_refused(encoding: str, piece: int) -> None:
    assert refusal("{}[]".encode(encoding), piece) == "the body is not JSON in UTF-8"


@pytest.mark.parametrize("odd", [b"", b'"', b'"\\', b"\\", b"]]]]", b"\xff", b"}"])
def test_what_is_no_json_is_left_to_the_parser(odd: bytes) -> None:
    assert refusal(odd) is None
