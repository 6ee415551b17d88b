"""Which words a text has."""

from __future__ import annotations

import pytest

from layerdrift.contract.words import has_one_of, has_others_than, has_word


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("The walrus plays.", "walrus", True),
        ("The Walruses play.", "walrus", False),
        ("WALRUS!", "walrus", True),
        ("sea-walrus", "walrus", True),
        ("copper\n lighthouse", "copper lighthouse", True),
        ("copper or lighthouse", "copper lighthouse", False),
        ("\uff37\uff21\uff2c\uff32\uff35\uff33", "walrus", True),  # full width
        ("stra\u00dfe", "STRASSE", True),
        ("a c++ program", "c++", True),
        ("walrus_1", "walrus", False),
    ],
)
def test_whole_words_and_phrases_are_found_however_they_are_written(text: str, word: str, expected: bool) -> None:
    assert has_one_of(text, ["unheard", word]) is expected


def test_a_text_has_others_than_the_words_of_a_list() -> None:
    assert not has_others_than("The film, the FILM!", ["the film"])
    assert has_others_than("the film of", ["the", "film"])
    assert not has_others_than(" ,.\n", ["film"])
    assert has_others_than("7", ["film"])


def test_a_word_has_a_letter_or_digit() -> None:
    assert [has_word(one) for one in ("a", "7", "\u00e9", "!", " ", "\u2026")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
