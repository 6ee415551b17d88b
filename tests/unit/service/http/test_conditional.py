from __future__ import annotations

import pytest

from service.http.conditional import conditional, etag_of, matches

TAG = '"abc"'


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        ("", False),
        (TAG, True),
        ("W/" + TAG, True),
        ('"other"', False),
        ("abc", False),
        (f'"other", W/{TAG}', True),
        (f'"other" ,{TAG} ', True),
        ("*", True),
        ('"*"', False),
        ('"abcd"', False),
    ],
)
def test_an_answer_is_known_where_the_header_names_its_tag(header: str | None, expected: bool) -> None:
    assert matches(header, TAG) is expected


def test_bodies_that_differ_in_a_byte_have_different_tags() -> None:
    assert etag_of(b"a") == etag_of(b"a") != etag_of(b"b")
    assert etag_of(b"")[0] == etag_of(b"")[-1] == '"'


def test_what_the_client_has_is_not_sent_again_but_its_headers_are() -> None:
    tag = etag_of(b"body")
    answer = conditional(b"body", "text/plain", tag, {"Vary": "Accept"})
    assert (answer.status_code, answer.body) == (304, b"")
    assert (answer.headers["etag"], answer.headers["vary"]) == (tag, "Accept")
    assert "content-type" not in answer.headers


@pytest.mark.parametrize("header", [None, '"of an earlier report"'])
def test_what_the_client_has_not_is_sent_with_its_tag(header: str | None) -> None:
    answer = conditional(b"body", "text/plain", header, {"Vary": "Accept"})
    assert (answer.status_code, answer.body) == (200, b"body")
    assert answer.headers["etag"] == etag_of(b"body")
    assert (answer.headers["content-type"], answer.headers["vary"]) == ("text/plain", "Accept")


def test_a_tag_that_is_given_counts_instead_of_that_of_the_body() -> None:
    assert conditional(b"body", "text/plain", TAG, {}, etag=TAG).status_code == 304
    assert conditional(b"body", "text/plain", etag_of(b"body"), {}, etag=TAG).status_code == 200
