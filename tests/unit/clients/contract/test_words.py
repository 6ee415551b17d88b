"""Which words a text has, and where."""

from __future__ import annotations

import pytest

from layerdrift.contract.words import Words, has_word, words_of

FULL_WIDTH = "\uff37\uff21\uff2c\uff32\uff35\uff33"
BEIJING = "\u5317\u4eac"
SEOUL = "\uc11c\uc6b8"
HINDI = "\u0926\u093f\u0932\u094d\u0932\u0940"


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("The walrus plays.", "walrus", True),
        ("The Walruses play.", "walrus", False),
        ("WALRUS!", "walrus", True),
        ("sea-walrus", "walrus", True),
        ("copper\n lighthouse", "copper lighthouse", True),
        ("copper or lighthouse", "copper lighthouse", False),
        (FULL_WIDTH, "walrus", True),
        ("stra\u00dfe", "STRASSE", True),
        ("\ufb01lm", "film", True),  # a ligature
        ("cafe\u0301 noir", "caf\u00e9", True),  # an accent by itself
        ("caf\u00e9s", "caf\u00e9", False),
        ("cafe\u0301", "cafe", False),
        ("a c++ program", "c++", True),
        ("walrus_1", "walrus", False),
        (f"\u6211\u5728{BEIJING}\u5de5\u4f5c", BEIJING, True),
        (f"{SEOUL}\uc5d0\uc11c", SEOUL, True),
        ("Acme\u793e", "Acme", True),
        (HINDI, HINDI[:-1], False),  # a vowel sign belongs to its letter
        (f"{HINDI} \u092e\u0947\u0902", HINDI, True),
    ],
)
def test_whole_words_and_phrases_are_found_however_they_are_written(text: str, word: str, expected: bool) -> None:
    words = Words(["unheard", word])
    assert words.within(text) is expected
    assert bool(words.spans(text)) is expected


def test_places_are_those_of_the_text_as_it_is() -> None:
    text = f"\ufb01\ufb01 stra\u00dfe, cafe\u0301 {FULL_WIDTH}"
    found = [text[start:end] for start, end in Words(["strasse", "caf\u00e9", "walrus"]).spans(text)]
    assert found == ["stra\u00dfe", "cafe\u0301", FULL_WIDTH]


def test_the_longest_of_several_is_found_and_shorter_ones_elsewhere() -> None:
    words = Words(["copper", "copper lighthouse"])
    text = "copper lighthouse, copper"
    assert [text[start:end] for start, end in words.spans(text)] == ["copper lighthouse", "copper"]


def test_a_text_has_others_than_the_words_of_a_list() -> None:
    assert not Words(["the film"]).beside_others("The film, the FILM!")
    assert Words(["the", "film"]).beside_others("the film of")
    assert not Words(["film"]).beside_others(" ,.\n")
    assert Words(["film"]).beside_others("7")


def test_a_word_has_a_letter_or_digit() -> None:
    assert all(has_word(one) for one in ("a", "7", "\u00e9"))
    assert not any(has_word(one) for one in ("!", " ", "\u2026"))


def test_the_words_of_a_rule_are_compiled_once() -> None:
    words = tuple(f"word{number}" for number in range(1_000))
    assert words_of(words) is words_of(words)
    assert words_of(words).within("a word7 of many")


def test_no_words_are_in_no_text() -> None:
    assert Words([]).spans("a") == []
    assert not Words([]).within("a")
