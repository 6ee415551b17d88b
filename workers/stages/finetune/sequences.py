"""Rows as a language model is trained on them: tokens, and which of them it is to give.

Strings end with the end token, and rendered chats as their template ends them, as in TRL. Rows are cut at the end;
those that have nothing to give then are counted and left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from workers.models.chats import ASSISTANT, ChatText
from workers.models.texts import Encoded, encode
from workers.results.warnings import ReportWarning

MAX_LENGTH: Final = 1_024
"""Tokens of a row where none are asked for, as in TRL."""

ENCODED_AT_ONCE = 1_024


class TokenSequence(NamedTuple):
    """Tokens of a row. asked: which of them the model is to give, never the first."""

    ids: list[int]
    asked: list[bool]

    @property
    def answers(self) -> int:
        """How many it is to give."""
        return sum(self.asked)


class Preference(NamedTuple):
    """Two answers to one prompt."""

    chosen: TokenSequence
    rejected: TokenSequence


@dataclass(frozen=True)
class Dropped:
    """Rows without an answer. truncated: whose answer lies beyond the length. other: that have none to begin with.

    cut: those that are kept, but whose answer loses its end.
    """

    truncated: int = 0
    other: int = 0
    rows: int = 0
    cut: int = 0

    def plus(self, more: Dropped) -> Dropped:
        """Of these rows and of others."""
        return Dropped(
            self.truncated + more.truncated, self.other + more.other, self.rows + more.rows, self.cut + more.cut
        )

    def warnings(self, length: int) -> list[ReportWarning]:
        """Says how many they are, and why."""
        found = []
        if self.truncated:
            message = (
                f"{self.truncated} of {self.rows} rows for the fine-tune have no token of the answer within their "
                f"first {length} tokens and were skipped; raise finetune.max_length"
            )
            found.append(ReportWarning(code="truncated_answers", message=message))
        if self.cut:
            message = (
                f"{self.cut} of {self.rows} rows for the fine-tune are longer than {length} tokens, so that their "
                "answers lose their end, and the token that ends them; raise finetune.max_length"
            )
            found.append(ReportWarning(code="truncated_answers", message=message))
        if self.other:
            message = f"{self.other} of {self.rows} rows for the fine-tune have no rejected answer and were skipped"
            found.append(ReportWarning(code="unusable_preferences", message=message))
        return found

    def require_some(self, kept: int, length: int) -> None:
        """Raises InputError where nothing is left to train on."""
        if kept or not self.rows:
            return
        if self.other == self.rows:
            detail = "objective dpo needs preferences: rows with chosen and rejected answers; the data set has none"
            raise InputError.at("/dataset", detail)
        detail = f"no row has a token of its answer within its first {length} tokens; raise it"
        raise InputError.at("/finetune/max_length", detail)


@dataclass(frozen=True)
class Encoding:
    """How rows are read. answers_alone: the model is to give the answers; else every token."""

    tokenizer: PreTrainedTokenizerBase
    length: int
    answers_alone: bool = True

    def sequences(self, rows: Sequence[Row]) -> tuple[list[TokenSequence], Dropped]:
        """For supervised fine-tuning: those that have a token to give."""
        whole = self._sequences([self._ended(row.text) for row in rows])
        found = [self._within(one) for one in whole]
        kept = [one for one in found if one.answers]
        cut = sum(0 < one.answers < all_of_it.answers for one, all_of_it in zip(found, whole, strict=True))
        return kept, Dropped(len(found) - len(kept), 0, len(rows), cut)

    def preferences(self, rows: Sequence[Row]) -> tuple[list[Preference], Dropped]:
        """For preference optimisation: those of which both answers have a token to give."""
        paired = [row for row in rows if row.others]
        chosen = self._answers([row.text for row in paired])
        rejected = self._answers([row.others[0] for row in paired])
        whole = [self._pair(*both) for both in zip(chosen, rejected, strict=True)]
        pairs = [Preference(*map(self._within, pair)) for pair in whole]
        kept = [pair for pair in pairs if pair.chosen.answers and pair.rejected.answers]
        cut = sum(
            pair != all_of_it and bool(pair.chosen.answers and pair.rejected.answers)
            for pair, all_of_it in zip(pairs, whole, strict=True)
        )
        return kept, Dropped(len(pairs) - len(kept), len(rows) - len(paired), len(rows), cut)

    def _pair(self, chosen: _Answered, rejected: _Answered) -> Preference:
        """Both answers begin where the first of them does, so that both have the same prompt."""
        start = min(chosen.start, rejected.start)
        return Preference(self._after(chosen.ids, start), self._after(rejected.ids, start))

    def _sequences(self, texts: Sequence[str]) -> list[TokenSequence]:
        """Texts whole, of chats the answers, of a prompt and its completion the completion."""
        found = list[TokenSequence]()
        completed = [_is_completed(text) for text in texts]
        answered = iter(self._answers([text for text, is_so in zip(texts, completed, strict=True) if is_so]))
        others = iter(self._encoded([text for text, is_so in zip(texts, completed, strict=True) if not is_so]))
        for is_so in completed:
            if is_so:
                one = next(answered)
                found.append(self._after(one.ids, one.start if self.answers_alone else 0))
            else:
                found.append(self._of_roles(next(others)))
        return found

    def _of_roles(self, encoded: Encoded) -> TokenSequence:
        ids, roles = encoded.ids, encoded.roles or []
        whole = not roles or not self.answers_alone
        return TokenSequence(ids, [place > 0 and (whole or roles[place] == ASSISTANT) for place in range(len(ids))])

    def _within(self, one: TokenSequence) -> TokenSequence:
        return TokenSequence(one.ids[: self.length], one.asked[: self.length])

    def _after(self, ids: list[int], start: int) -> TokenSequence:
        return TokenSequence(ids, [place >= max(1, start) for place in range(len(ids))])

    def _answers(self, texts: Sequence[str]) -> list[_Answered]:
        """Where the tokens of each completion begin: at the first that the prompt alone does not have there."""
        ended = [self._ended(text) for text in texts]
        prompts = [_prompt_of(text) for text in ended]
        found = []
        for whole, prompt in zip(self._encoded(ended), self._encoded(prompts), strict=True):
            pairs = enumerate(zip(whole.ids, prompt.ids, strict=False))
            shorter = min(len(whole.ids), len(prompt.ids))
            found.append(_Answered(whole.ids, next((place for place, (a, b) in pairs if a != b), shorter)))
        return found

    def _ended(self, text: str) -> str:
        """A string with the end token; chats have what their template ends them with."""
        end = self.tokenizer.eos_token
        if not isinstance(end, str) or text.endswith(end) or (isinstance(text, ChatText) and not text.plain):
            return text
        if isinstance(text, ChatText):
            last = text.spans[-1]._replace(end=len(text) + len(end))
            return ChatText(text + end, (*text.spans[:-1], last), text.completion, plain=True)
        return text + end

    def _encoded(self, texts: Sequence[str]) -> Iterator[Encoded]:
        for start in range(0, len(texts), ENCODED_AT_ONCE):
            yield from encode(self.tokenizer, texts[start : start + ENCODED_AT_ONCE], None)


class _Answered(NamedTuple):
    """Tokens of a prompt and its completion, and where this one begins."""

    ids: list[int]
    start: int


def _is_completed(text: str) -> bool:
    return isinstance(text, ChatText) and text.completion is not None


def _prompt_of(text: str) -> str:
    """The part of a text before its completion, read as the text is."""
    if not isinstance(text, ChatText):
        return ""
    return ChatText(text[: text.completion or 0], (), None, text.plain)


class Padded(NamedTuple):
    """B sequences as [B, T]: ids, padded with 0, which of them are tokens, and which are to be given."""

    ids: Tensor
    mask: Tensor
    asked: Tensor


def padded(sequences: Sequence[TokenSequence]) -> Padded:
    """Sequences filled up on the right."""
    shape = len(sequences), max(len(one.ids) for one in sequences)
    ids, mask = torch.zeros(2, *shape, dtype=torch.int64)
    asked = torch.zeros(shape, dtype=torch.bool)
    for row, one in enumerate(sequences):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        mask[row, : len(one.ids)] = 1
        asked[row, : len(one.ids)] = torch.tensor(one.asked)
    return Padded(ids, mask, asked)
