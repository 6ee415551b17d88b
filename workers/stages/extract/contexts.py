"""Which token of which text a row of activations is, and the words around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workers.models.texts import Batch
from workers.results.autoencoders import LatentExample

WORDS_AROUND = 8
"""Tokens shown on either side."""


class TokenContext(NamedTuple):
    """A row's token as people read it, the tokens around it, and its text's number and label."""

    before: str
    token: str
    after: str
    text: int
    label: str | None


class Contexts:
    """The texts of rows of activations, for rows that come batch after batch.

    Args:
        labels: of the texts that batches name by their numbers.
        units: numbers of the texts' units of texts that are nearly the same; None: every text is one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str | None],
        units: Sequence[int] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._labels = labels
        self._units = units
        self._ids: dict[int, list[int]] = {}
        self._texts: list[int] = []
        self._roles: list[int] = []
        self._starts: dict[int, int] = {}
        self._contexts: dict[int, TokenContext] = {}

    def __len__(self) -> int:
        """How many rows are known."""
        return len(self._texts)

    def add(self, batch: Batch) -> None:
        """Takes note of a batch whose real tokens became rows, text after text."""
        if batch.roles is not None:
            self._roles += batch.roles[batch.real].tolist()
        for text, ids, real in zip(batch.indices, batch.input_ids, batch.real, strict=True):
            self._starts[text] = len(self._texts)
            self._ids[text] = ids[real].tolist()
            self._texts += [text] * len(self._ids[text])

    def without_first(self, rows: int) -> Contexts:
        """For rows of which so many were taken away at the front."""
        rest = Contexts(self._tokenizer, self._labels, self._units)
        rest._ids = self._ids
        rest._texts = self._texts[rows:]
        rest._roles = self._roles[rows:]
        rest._starts = {text: start - rows for text, start in self._starts.items()}
        return rest

    def texts(self, rows: int) -> Tensor:
        """The numbers of the first rows' texts; [rows] int64."""
        return torch.tensor(self._texts[:rows])

    def units(self, rows: int) -> Tensor:
        """The numbers of the units of the first rows' texts; [rows] int64."""
        texts = self.texts(rows)
        return texts if self._units is None else torch.tensor(self._units)[texts]

    def labels(self, rows: int) -> list[str | None]:
        """The labels of the first rows' texts."""
        return [self._labels[text] for text in self._texts[:rows]]

    def roles(self, rows: int) -> Tensor | None:
        """Whose words the tokens of the first rows are, as numbers of TOKEN_ROLES, [rows]; None where none is a chat's.

        ValueError where some texts are chats and others not.
        """
        if not self._roles:
            return None
        if len(self._roles) != len(self._texts):
            raise ValueError("some of the texts are chats, and others are not")
        return torch.tensor(self._roles[:rows])

    def example(self, row: int, activation: float) -> LatentExample:
        """What a report shows of a row."""
        context = self.around(row)
        return LatentExample(
            before=context.before, token=context.token, after=context.after, activation=activation, label=context.label
        )

    def around(self, row: int) -> TokenContext:
        """A row's token and what stands around it; kept, since strong tokens are asked for again and again."""
        if row not in self._contexts:
            self._contexts[row] = self._read_around(row)
        return self._contexts[row]

    def _read_around(self, row: int) -> TokenContext:
        text = self._texts[row]
        ids, place = self._ids[text], row - self._starts[text]
        first, last = max(0, place - WORDS_AROUND), place + 1 + WORDS_AROUND
        before, token, after = (self._read(part) for part in (ids[first:place], [ids[place]], ids[place + 1 : last]))
        return TokenContext(
            before=("… " if first else "") + before,
            token=token,
            after=after + (" …" if last < len(ids) else ""),
            text=text,
            label=self._labels[text],
        )

    def _read(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip() if ids else ""
