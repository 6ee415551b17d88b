"""Texts of many batches read in larger ones of like length: less padding, and larger matrix products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from workers.models.texts import Batch, cuts
from workers.stages.common.moment_accumulator import BATCH_TEXTS, BATCH_TOKENS

Place = tuple[int, int, int]
"""Of a text: the merged batch that it is read in, its row there, and its tokens."""


@dataclass(frozen=True)
class MergedBatches:
    """The texts of some batches, in batches of their own.

    batches: in which the texts are read. layout: where the texts of the original batches are in them.
    """

    batches: list[Batch]
    layout: Layout

    @staticmethod
    def of(originals: Sequence[Batch]) -> MergedBatches:
        """At most BATCH_TEXTS texts and BATCH_TOKENS tokens each, but for a longer text alone."""
        lengths = [one.attention_mask.sum(1).tolist() for one in originals]
        texts = [(number, row) for number, own in enumerate(lengths) for row in range(len(own))]
        texts.sort(key=lambda text: lengths[text[0]][text[1]])
        in_order = [lengths[number][row] for number, row in texts]
        merged = [texts[start:end] for start, end in cuts(in_order, BATCH_TEXTS, BATCH_TOKENS)]
        return _merged(originals, lengths, merged)

    def halved(self, originals: Sequence[Batch]) -> MergedBatches:
        """The same with other texts beside each other: every other text of each batch."""
        lengths = [one.attention_mask.sum(1).tolist() for one in originals]
        inside: list[list[tuple[int, int]]] = [[(0, 0)] * len(batch.indices) for batch in self.batches]
        for number, places in enumerate(self.layout.places):
            for row, (batch, place, _) in enumerate(places):
                inside[batch][place] = number, row
        halves = [half for texts in inside for half in (texts[1::2], texts[::2]) if half]
        return _merged(originals, lengths, halves)


@dataclass(frozen=True)
class Layout:
    """Where the texts of each original batch are read, [row], and the shape [B, T] of that batch."""

    places: list[list[Place]]
    shapes: list[tuple[int, int]]


class Regrouped(Sequence[Tensor]):
    """States of merged batches as those of the original ones, [B, T, D] each, zeros beyond a text's end.

    Each is put together when it is asked for: together they would take the memory of all states once more.
    """

    def __init__(self, states: list[Tensor], layout: Layout) -> None:
        self.states = states
        self.layout = layout

    def __len__(self) -> int:
        return len(self.layout.places)

    @overload
    def __getitem__(self, number: int) -> Tensor: ...

    @overload
    def __getitem__(self, number: slice) -> list[Tensor]: ...

    def __getitem__(self, number: int | slice) -> Tensor | list[Tensor]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        shape = self.layout.shapes[number]
        found = self.states[0].new_zeros(*shape, self.states[0].shape[-1])
        for row, (batch, place, length) in enumerate(self.layout.places[number]):
            found[row, :length] = self.states[batch][place, :length]
        return found

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(len(self)):
            yield self[number]


def _merged(originals: Sequence[Batch], lengths: list[list[int]], merged: list[list[tuple[int, int]]]) -> MergedBatches:
    places: list[list[Place]] = [[(0, 0, 0)] * len(own) for own in lengths]
    batches = list[Batch]()
    for texts in merged:
        for place, (number, row) in enumerate(texts):
            places[number][row] = len(batches), place, lengths[number][row]
        batches.append(_batch(originals, lengths, texts))
    return MergedBatches(batches, Layout(places, [(len(one.indices), one.input_ids.shape[1]) for one in originals]))


def _batch(originals: Sequence[Batch], lengths: list[list[int]], texts: list[tuple[int, int]]) -> Batch:
    """Some texts together. indices: 0, 1 … of the batch."""
    longest = max(lengths[number][row] for number, row in texts)
    typed = all(originals[number].token_types is not None for number, _ in texts)
    ids, mask, types = torch.zeros(3, len(texts), longest, dtype=torch.int64)
    real = torch.zeros(len(texts), longest, dtype=torch.bool)
    for place, (number, row) in enumerate(texts):
        original, length = originals[number], lengths[number][row]
        ids[place, :length] = original.input_ids[row, :length]
        mask[place, :length] = 1
        real[place, :length] = original.real[row, :length]
        if typed and original.token_types is not None:
            types[place, :length] = original.token_types[row, :length]
    return Batch(ids, mask, real, list(range(len(texts))), types if typed else None)
