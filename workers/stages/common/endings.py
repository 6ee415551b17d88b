"""The other endings of the analysed chats: rejected answers, and wrong choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backends.tables.reading import Row
from workers.models.chats import ChatText
from workers.models.texts import encode
from workers.stages.common.moment_accumulator import TokenizationSpec

ENDING_TEXTS = 1_000
"""Analysed texts whose other endings are read, from the first one on."""


@dataclass(frozen=True)
class Endings:
    """rows: each a text with another ending. owners: the number of the analysed text that it belongs to, [E].

    skipped: texts that are longer than what is read, with any of their endings.
    """

    rows: list[Row]
    owners: list[int]
    skipped: int

    @staticmethod
    def of(spec: TokenizationSpec, analysed: Sequence[Row]) -> Endings | None:
        """Of the first texts that have some and fit whole; None where none has any."""
        having = [number for number, row in enumerate(analysed) if row.others][:ENDING_TEXTS]
        if not having:
            return None
        texts = [[analysed[number].text, *analysed[number].others] for number in having]
        lengths = [len(one.ids) for one in encode(spec.tokenizer, [text for some in texts for text in some], None)]
        rows, owners, at = list[Row](), list[int](), 0
        for number, some in zip(having, texts, strict=True):
            whole = max(lengths[at : at + len(some)]) <= spec.length
            at += len(some)
            if whole:
                rows += [Row(text, None) for text in some[1:]]
                owners += [number] * (len(some) - 1)
        return Endings(rows, owners, len(having) - len(set(owners)))


def answer_characters(text: str) -> int:
    """Characters of what a model is to give, white space around it left out."""
    if not isinstance(text, ChatText):
        return len(text.strip())
    return sum(len(text[span.start : span.end].strip()) for span in text.spans if span.role == "assistant")
