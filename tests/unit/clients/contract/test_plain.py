"""Names, tags and URIs are one line that can be seen."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from layerdrift.contract.plain import STORED, Plain, visible


class Named(BaseModel):
    name: Plain


HIDDEN = ["\n", "\t", "\x00", "\x1b", "\x7f", "\x9b", "\u2028", "\u2029", "\u202e", "\u2066"]


@pytest.mark.parametrize("character", HIDDEN, ids=ascii)
def test_a_character_that_cannot_be_seen_is_refused_with_its_place(character: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Named(name=f"ab{character}c")
    assert f"control characters are not allowed; found {character!r} at character 3" in str(raised.value)


@pytest.mark.parametrize("character", HIDDEN, ids=ascii)
def test_a_record_that_was_accepted_before_is_read_as_it_is(character: str) -> None:
    assert Named.model_validate({"name": character}, context=STORED).name == character


@pytest.mark.parametrize("name", ["", " ", "Größe – 大 😀", "a\u00a0b", "e\u0301", "שלום"])
def test_what_people_write_is_a_name(name: str) -> None:
    assert Named(name=name).name == name


@pytest.mark.parametrize("character", HIDDEN, ids=ascii)
def test_a_hidden_character_is_shown_as_its_escape(character: str) -> None:
    shown = visible(f"a{character}b")
    assert shown.isprintable()
    assert shown.encode().decode("unicode_escape") == f"a{character}b"


def test_what_can_be_seen_is_shown_as_it_is_backslashes_too() -> None:
    assert visible("C:\\new 😀 'é'") == "C:\\new 😀 'é'"
