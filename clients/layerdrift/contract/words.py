"""Rules on words: whether a text has one of them, or others than them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_WORD = re.compile(r"\w+")


def has_one_of(text: str, words: Sequence[str]) -> bool:
    """Whether a text has one of some words or phrases, whole; capitals, widths and kinds of spaces are alike."""
    plain = _plain(text)
    return any(re.search(rf"(?<!\w){re.escape(_plain(word))}(?!\w)", plain) is not None for word in words)


def has_others_than(text: str, words: Sequence[str]) -> bool:
    """Whether a text has a word that none of some words or phrases has; commas and the like do not count."""
    known = {part for word in words for part in _WORD.findall(_plain(word))}
    return any(part not in known for part in _WORD.findall(_plain(text)))


def has_word(text: str) -> bool:
    """Whether there is a letter or digit in it."""
    return _WORD.search(_plain(text)) is not None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
