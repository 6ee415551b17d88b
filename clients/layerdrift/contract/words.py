"""Words in texts: which texts have one of them, or others than them, and where.

Capital and small letters, full and half width, and composed and decomposed accents are alike. A word is found whole:
not inside a longer one. In scripts that write no spaces between words, such as Chinese, Japanese and Thai, and beside
Korean particles, it is found anywhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

REDACTED: Final = "[redacted]"
"""What stands in a report in the place of a word that must not appear."""

_SPACELESS = (
    "\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Tibetan; Burmese and Korean letters; Khmer; Chinese and Japanese."""

_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0903\u093a-\u094f"
    "\u0951-\u0957\u0962\u0963\u0980-\u0983\u09bc-\u09cd\u0a01-\u0a4d\u0a81-\u0acd\u0b01-\u0b4d\u0b82-\u0bcd"
    "\u0c00-\u0c4d\u0c81-\u0ccd\u0d00-\u0d4d\u20d0-\u20ff"
)
"""Accents and vowel signs, which belong to the letter before them."""

_WORD = re.compile(rf"[\w{_MARKS}]+")
_BEFORE, _AFTER = rf"(?<![^\W{_SPACELESS}])(?<![{_MARKS}])", rf"(?![^\W{_SPACELESS}])(?![{_MARKS}])"
_IN_SPACELESS = re.compile(f"[{_SPACELESS}]")


class Words:
    """Some words and phrases; white space in a phrase stands for any white space."""

    def __init__(self, words: Sequence[str]) -> None:
        plain = [" ".join(_plain(word).split()) for word in words]
        patterns = [_pattern(word) for word in sorted(set(plain), key=len, reverse=True) if word]
        self._any = re.compile("|".join(patterns)) if patterns else None
        self._parts = {part for word in plain for part in _WORD.findall(word)}

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where they stand in a text: from, and before which character."""
        if self._any is None:
            return []
        letters = [_plain(letter) for letter in text]
        places = [place for place, plain in enumerate(letters) for _ in plain]
        found = self._any.finditer("".join(letters))
        return [(places[one.start()], places[one.end() - 1] + 1) for one in found]

    def within(self, text: str) -> bool:
        """Whether a text has one of them."""
        return self._any is not None and self._any.search(_plain(text)) is not None

    def beside_others(self, text: str) -> bool:
        """Whether a text has a word that none of them has; commas and the like do not count."""
        return any(part not in self._parts for part in _WORD.findall(_plain(text)))


@lru_cache(maxsize=64)
def words_of(words: tuple[str, ...]) -> Words:
    """The same, made once for a rule that looks at many texts."""
    return Words(words)


def has_word(text: str) -> bool:
    """Whether there is a letter or digit in it."""
    return _WORD.search(_plain(text)) is not None


def _pattern(word: str) -> str:
    inside = r"\s+".join(re.escape(part) for part in word.split())
    before = "" if _IN_SPACELESS.match(word[0]) else _BEFORE
    after = "" if _IN_SPACELESS.match(word[-1]) else _AFTER
    return f"{before}{inside}{after}"


def _plain(text: str) -> str:
    """Letter by letter, so that places can be told."""
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
