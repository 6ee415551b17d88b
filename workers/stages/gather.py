"""Hidden states of two models become rows of the three views, and their moments, as batches come.

Used for the pair itself and for every pair that it is compared with: nulls, and snapshots of a fine-tune.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from layerdrift.contract.report import ViewName
from workers.analysis.moments import PairMoments
from workers.analysis.streams import Group, Rows, RowSample, StreamedMoments
from workers.models.texts import Batch, batches
from workers.scratch import GroupStore

BATCH_TEXTS, BATCH_TOKENS = 32, 1024
"""Texts of a batch, and tokens with padding: long texts shall not take more memory than short ones."""

GROUPS = 20
FRAME_TOKENS, FRAME_TEXTS, FRAME_BYTES = 4096, 512, 128 << 20
"""A view's frame is taken from its first rows: so many, or as many as fit into so much memory, or all."""

TOKEN_SAMPLE = 2048
"""Tokens of the random sample that the cross-layer map is computed on."""

TEXT_SAMPLE, TEXT_SAMPLE_BYTES = 1000, 256 << 20
"""Texts of the sample that distances and probes are computed on: so many, or as many as fit into so much memory."""

VIEWS: tuple[ViewName, ...] = get_args(ViewName)

States = list[Tensor]
"""The states at every layer: L + 1 times [B, T, D] float32."""

StatesOf = Callable[[Batch], States]


@dataclass(frozen=True)
class Reading:
    """How texts are read: the same for every model of an analysis."""

    tokenizer: PreTrainedTokenizerBase
    length: int
    causal: bool

    def grouped(self, texts: list[str]) -> Iterator[tuple[int, Batch]]:
        """Batches of one group after another; text number i is in group i mod G, whatever the texts' order means."""
        groups = group_count(len(texts))
        for group in range(groups):
            members = range(group, len(texts), groups)
            inside = [texts[index] for index in members]
            for batch in batches(self.tokenizer, inside, BATCH_TEXTS, self.length, BATCH_TOKENS):
                yield group, batch._replace(indices=[members[index] for index in batch.indices])


def group_count(texts: int) -> int:
    """Groups that the texts are dealt into for intervals: of two texts or more."""
    return max(1, min(GROUPS, texts // 2))


def token_rows(states: States, batch: Batch, buffer: Tensor | None = None) -> Tensor:
    """The states of real tokens alone; [L + 1, N, D], in the memory of `buffer` [L + 1, >= N, D] where it is given."""
    real = batch.real.flatten().nonzero()[:, 0]
    if buffer is None:
        buffer = states[0].new_empty(len(states), len(real), states[0].shape[2])
    for layer, out in zip(states, buffer, strict=True):
        torch.index_select(layer.flatten(0, 1), 0, real, out=out[: len(real)])
    return buffer[:, : len(real)]


def text_rows(states: States, batch: Batch, causal: bool) -> dict[ViewName, Tensor]:
    """One row for each text: `cls`, its first token (last, in a decoder), and `mean`, over its real tokens.

    Texts without a real token are left out of both. [L + 1, N, D] each
    """
    kept = batch.real.any(1)
    texts = torch.arange(len(kept))[kept]
    position = batch.attention_mask.sum(1) - 1 if causal else torch.zeros(len(kept), dtype=torch.int64)
    weights = batch.real.float()[:, None] / batch.real.sum(1).clamp_min(1)[:, None, None]
    return {
        "cls": torch.stack([layer[texts, position[kept]] for layer in states]),
        "mean": torch.stack([torch.bmm(weights, layer)[kept, 0] for layer in states]),
    }


@dataclass(frozen=True)
class TextSample:
    """Mean-view rows of the first analysed texts in both models.

    rows: [L + 1, N, D] each. texts: the texts' numbers, as analysed.
    """

    rows: Rows
    texts: list[int]


class Gathering:
    """Moments of all views, and samples of tokens and texts, as batches come; the models run once.

    Args:
        seed: of the sample of tokens.
        groups: where the groups of a view go; none for a view that is not in it.
    """

    def __init__(self, causal: bool, seed: int, groups: dict[ViewName, GroupStore]) -> None:
        self.token_sample = RowSample(TOKEN_SAMPLE, torch.Generator().manual_seed(seed))
        self.groups = groups
        self.views = {view: self._stream(view) for view in VIEWS}
        self._causal = causal
        self._buffer: Tensor | None = None
        self._sampled: list[tuple[list[int], Rows]] = []

    def _stream(self, view: ViewName) -> StreamedMoments:
        sink = self.groups[view].put if view in self.groups else _forget
        return StreamedMoments(FRAME_TOKENS if view == "token" else FRAME_TEXTS, FRAME_BYTES, sink)

    @property
    def tokens(self) -> int:
        """Tokens compared so far."""
        return self.views["token"].rows

    def add(self, group: int, batch: Batch, base: States, tuned: States) -> Rows:
        """Takes the states of a group's batch in both models; the token rows of both, in memory that is used again.

        Raises:
            NotFinite: a state is NaN or infinite.
        """
        real = int(batch.real.sum())
        if self._buffer is None or self._buffer.shape[2] < real:
            self._buffer = base[0].new_empty(2, len(base), max(real, BATCH_TOKENS), base[0].shape[2])
        tokens = Rows(*(token_rows(of, batch, out) for of, out in zip((base, tuned), self._buffer, strict=True)))
        one, other = (text_rows(states, batch, self._causal) for states in (base, tuned))
        self.token_sample.add(*tokens)
        self.views["token"].add(group, *tokens)
        for view in one:
            self.views[view].add(group, one[view], other[view])
        self._sample(batch, one["mean"], other["mean"])
        return tokens

    def moments(self) -> dict[ViewName, PairMoments]:
        """Of each view; the last groups go to their stores."""
        return {view: stream.finished() for view, stream in self.views.items()}

    def text_sample(self) -> TextSample:
        """The mean-view rows that were kept."""
        rows = Rows.joined([rows for _, rows in self._sampled])
        return TextSample(rows, [text for texts, _ in self._sampled for text in texts])

    def _sample(self, batch: Batch, base: Tensor, tuned: Tensor) -> None:
        texts = [index for index, real in zip(batch.indices, batch.real.any(1).tolist(), strict=True) if real]
        limit = min(TEXT_SAMPLE, TEXT_SAMPLE_BYTES // (2 * base[:, 0].nbytes)) if texts else 0
        kept = [place for place, text in enumerate(texts) if text < limit]
        if kept:
            self._sampled.append(([texts[place] for place in kept], Rows(base[:, kept], tuned[:, kept])))


def _forget(_: Group) -> None:
    """Takes a group where nothing is kept of it."""
