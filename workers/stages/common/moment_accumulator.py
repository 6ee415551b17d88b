"""Hidden states of two models become rows of the three views, and their moments, as batches come.

Used for the pair itself and for every pair that it is compared with: nulls, and snapshots of a fine-tune.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from layerdrift.contract.names import RoleName, ViewName
from workers.analysis.moments import BLOCK_ROWS, Frame, PairMoments
from workers.analysis.rowsums import take_rows
from workers.analysis.streams import Group, Rows, RowSample, StreamedMoments
from workers.models.chats import TOKEN_ROLES, ChatText
from workers.models.inliers import Inliers
from workers.models.states import StateReader
from workers.models.texts import COUNTED_AT_ONCE, Batch, Text, batches, count_tokens, encode
from workers.scratch import GroupStore

BATCH_TEXTS, BATCH_TOKENS = 32, 1024
"""Texts of a batch, and tokens with padding: long texts shall not take more memory than short ones."""

BUFFER_BYTES = 64 << 20
"""Token rows are summed up to BLOCK_ROWS at a time, in so much memory where a batch does not need more."""

GROUPS = 20
MERGED, LEAST_GROUPS, ROOM = (1, 2), 10, 1.5
"""Groups of wide models are merged by two where ten are left. A group has a little more than its share of the rows."""

WIDE = 1024
"""From this width on there are half as many groups: each left-out measure costs products of D x D."""

LEAST_TOKENS, LEAST_TEXTS = 50, 5
"""Where that does not help, a sample of each view's rows is kept in its share of the room, of so many of a group or
more. Tokens have twice the share that texts have."""

ROLE_TOKENS = 200
"""Roles with fewer tokens are not measured apart."""

FRAME_TOKENS, FRAME_TEXTS, FRAME_BYTES = 4096, 512, 128 << 20
"""A view's frame is taken from its first rows: so many, or as many as fit into so much memory, or all."""

TOKEN_SAMPLE, TOKEN_SAMPLE_BYTES, GRAM_BYTES = 2048, 64 << 20, 256 << 20
"""Tokens of the random sample that the cross-layer map is computed on: so many, or as many as there is room for, of
their states and of a matrix of products for every layer of both models."""

TEXT_SAMPLE, TEXT_SAMPLE_BYTES = 1000, 256 << 20
"""Texts of the sample that distances and probes are computed on: so many, or as many as fit into so much memory."""

VIEWS: tuple[ViewName, ...] = ("token", "cls", "mean")
"""Of every analysis; chats also have the tokens of each role."""

TOKENS_IN_MEMORY, TEXTS_IN_MEMORY = 192 << 20, 16 << 20
"""Bytes that groups may take in memory. Of tokens, all of a model 384 wide with 6 blocks; of texts and of the tokens of
a role little, since few rows make little, and many would make more."""


def group_memory(view: ViewName) -> int:
    """Bytes of a view's groups that stay in memory."""
    return TOKENS_IN_MEMORY if view == "token" else TEXTS_IN_MEMORY


def is_of_texts(view: ViewName) -> bool:
    """Whether a row of the view is of a whole text; else it is of a token."""
    return view in ("cls", "mean")


States = list[Tensor]
"""The states at every layer: L + 1 times [B, T, D] float32."""

StatesOf = Callable[[Batch], States]


@dataclass(frozen=True)
class TokenizationSpec:
    """How texts are read: the same for every model of an analysis.

    states: reads the layers of every model. inliers: which tokens count; None before the rule is known.
    units: the number of each analysed text's unit, of texts that are alike; None: every text is one by itself.
    roles: whose tokens are also measured apart, and how many each has in the analysed texts.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int
    causal: bool
    states: StateReader
    inliers: Inliers | None = None
    units: tuple[int, ...] | None = None
    roles: Mapping[RoleName, int] = field(default_factory=dict)

    @property
    def rule(self) -> Inliers:
        """Which tokens count; ValueError before it is known."""
        if self.inliers is None:
            raise ValueError("which tokens count is not known yet")
        return self.inliers

    def known(self, batch: Batch) -> Batch:
        """The batch without the outliers that were found in its texts before."""
        return batch if self.inliers is None else self.inliers.known(batch)

    def units_of(self, texts: int) -> Tensor:
        """The number of the unit of each of the first analysed texts, [N]."""
        return torch.arange(texts) if self.units is None else torch.tensor(self.units[:texts])

    def groups_of(self, texts: int) -> Tensor:
        """The group of each of the first analysed texts, [N]: unit number u is in group u mod G."""
        units = self.units_of(texts)
        return units % group_count(int(units.max()) + 1)

    def within(self, texts: list[Text], max_tokens: int) -> tuple[list[Text], int]:
        """The first texts, up to the one with which the limit is reached, and how many tokens they have."""
        counts = list(accumulate(count_tokens(self.tokenizer, texts, self.length)))
        reached = next((number for number, count in enumerate(counts, start=1) if count >= max_tokens), len(texts))
        return texts[:reached], counts[reached - 1]

    def with_roles(self, texts: Sequence[Text]) -> TokenizationSpec:
        """The same for chats, whose roles are measured apart where they have enough tokens."""
        if not any(isinstance(text, ChatText) for text in texts):
            return self
        counts = Counter[int]()
        for start in range(0, len(texts), COUNTED_AT_ONCE):
            for one in encode(self.tokenizer, texts[start : start + COUNTED_AT_ONCE], self.length):
                words = zip(one.roles or [], one.special, strict=False)
                counts.update(role for role, special in words if not special)
        roles = {name: counts[number] for number, name in enumerate(TOKEN_ROLES) if counts[number] >= ROLE_TOKENS}
        return replace(self, roles=roles)

    def rows(self, texts: int, tokens: int) -> dict[ViewName, int]:
        """About how many rows each view has."""
        found: dict[ViewName, int] = {"token": tokens, "cls": texts, "mean": texts}
        found.update(self.roles.items())
        return found

    def plan(self, texts: int, tokens: int, limit_bytes: float, layers: int | None = None) -> GroupPlan | None:
        """What is kept of the groups of the first texts, which have so many tokens; by default of all layers."""
        groups = int(self.groups_of(texts).max()) + 1
        shape = layers or self.states.layers, self.states.width
        return GroupPlan.of(shape, self.rows(texts, tokens), groups, limit_bytes)

    def grouped(self, texts: Sequence[Text]) -> Iterator[tuple[int, Batch]]:
        """Batches of one group of the analysed texts after another, whatever the texts' order means."""
        groups = self.groups_of(len(texts))
        for group in range(int(groups.max()) + 1):
            members = (groups == group).nonzero()[:, 0].tolist()
            inside = [texts[index] for index in members]
            for batch in batches(self.tokenizer, inside, BATCH_TEXTS, self.length, BATCH_TOKENS):
                yield group, batch._replace(indices=[members[index] for index in batch.indices])


@dataclass(frozen=True)
class GroupPlan:
    """How much is kept of the groups of texts, so that the intervals of wide models have room.

    merged: so many neighbouring groups count as one. every: of a group's rows of a view, each such one is kept.
    """

    merged: int = 1
    every: Mapping[ViewName, int] = field(default_factory=lambda: dict.fromkeys(VIEWS, 1))

    @property
    def sampled(self) -> bool:
        """Whether the groups of a view are a sample of their rows."""
        return any(every > 1 for every in self.every.values())

    @staticmethod
    def of(shape: tuple[int, int], rows: Mapping[ViewName, int], groups: int, limit_bytes: float) -> GroupPlan | None:
        """The one that keeps most within the limit; None where too few rows of a group fit.

        Args:
            shape: of the states of a row, [L + 1, D]. rows: of all groups, by view.
        """

        def size(view: ViewName, count: int, every: int) -> int:
            return count * GroupStore.bytes_for(*shape, math.ceil(ROOM * rows[view] / count / every))

        possible = [merged for merged in MERGED if merged == 1 or math.ceil(groups / merged) >= LEAST_GROUPS]
        for merged in possible[-1:] if shape[1] >= WIDE else possible:
            count = math.ceil(groups / merged)
            if sum(size(view, count, 1) for view in rows) <= limit_bytes:
                return GroupPlan(merged)
        sample: dict[ViewName, int] = {}
        parts = {view: 2 if view == "token" else 1 for view in rows}
        for view, part in parts.items():
            least = LEAST_TEXTS if view != "token" else LEAST_TOKENS
            room = part / sum(parts.values()) * limit_bytes
            powers = (2**power for power in range(max(1, rows[view] // (groups * least)).bit_length()))
            fitting = next((every for every in powers if size(view, groups, every) <= room), None)
            if fitting is None:
                return None
            sample[view] = fitting
        return GroupPlan(every=sample)


def group_stores(
    folder: Path, plan: GroupPlan | None = None, roles: Iterable[RoleName] = ()
) -> dict[ViewName, GroupStore]:
    """Places for the groups of every view."""
    every = plan.every if plan is not None else {}
    views: tuple[ViewName, ...] = (*VIEWS, *roles)
    return {view: GroupStore(folder / view, group_memory(view), every.get(view, 1)) for view in views}


def group_count(units: int) -> int:
    """Groups that texts, or units of texts that are alike, are split into for intervals: of two units or more."""
    return max(1, min(GROUPS, units // 2))


def token_sample(layers: int, width: int, seed: int) -> RowSample:
    """A sample of tokens that is small enough for the cross-layer map of so many layers."""
    numbers = 2 * layers * torch.float32.itemsize
    size = min(TOKEN_SAMPLE, TOKEN_SAMPLE_BYTES // (numbers * width), math.isqrt(GRAM_BYTES // numbers))
    return RowSample(size, torch.Generator().manual_seed(seed))


class BatchRows(NamedTuple):
    """What one model's states on a batch give the views.

    tokens: [L + 1, N, D], the tokens that count. cls: [L + 1, B, D], the first token of each text (last, in a decoder).
    mean: [L + 1, B, D], over its tokens that count. Texts without such a token are left out of the last two; from `cls`
    also those of a decoder whose last token is an outlier.
    """

    tokens: Tensor
    cls: Tensor
    mean: Tensor


def batch_rows(states: States, batch: Batch, causal: bool, out: Tensor | None = None) -> BatchRows:
    """The rows of all views; those of tokens in the memory of `out` where it is given."""
    if out is None:
        out = states[0].new_empty(len(states), int(batch.real.sum()), states[0].shape[2])
    cls, mean = states[0].new_empty(2, len(states), len(batch.real), states[0].shape[2])
    attended = batch.attention_mask.sum(1)
    position = attended - 1 if causal else torch.zeros_like(attended)
    for layer, *written in zip(states, out, cls, mean, strict=True):
        inputs = layer.contiguous(), batch.real, position
        take_rows(*(one.numpy() for one in (*inputs, *written)))
    kept = batch.real.any(1)
    ends = kept
    if causal and batch.outlying is not None:
        ends = kept & ~batch.outlying[torch.arange(len(position)), position]
    return BatchRows(out, cls if bool(ends.all()) else cls[:, ends], mean if bool(kept.all()) else mean[:, kept])


def token_rows(states: States, batch: Batch) -> Tensor:
    """The states of the tokens that count; [L + 1, N, D]."""
    return batch_rows(states, batch, causal=False).tokens


@dataclass(frozen=True)
class TextSample:
    """Mean-view rows of the first analysed texts in both models.

    rows: [L + 1, N, D] each. texts: the texts' numbers, as analysed.
    """

    rows: Rows
    texts: list[int]


def role_rows(batch: Batch, tokens: Rows, role: RoleName) -> Rows:
    """Those of the batch's token rows [S, N, D] that are of a role."""
    if batch.roles is None:
        return tokens.part(0, 0)
    chosen = batch.roles[batch.real] == TOKEN_ROLES.index(role)
    return Rows(tokens.base[:, chosen], tokens.tuned[:, chosen])


class _TokenBuffer:
    """Token rows of a few batches of one group, so that many are summed at once."""

    def __init__(self, stream: StreamedMoments) -> None:
        self.count = 0
        self._stream = stream
        self._rows: Rows | None = None
        self._group = -1

    def room(self, group: int, count: int, states: States) -> Rows:
        """Memory for so many tokens of a group's next batch, which counts as filled; it is used again afterwards."""
        if self._rows is None or self._rows.n < self.count + count or group != self._group:
            self.flush()
        if self._rows is None or self._rows.n < count:
            self._rows = Rows.empty(states[0], len(states), self._size(states, count))
        self._group = group
        self.count += count
        return self._rows.part(self.count - count, self.count)

    def flush(self) -> None:
        """Passes on what is here."""
        if self._rows is not None and self.count:
            rows, self.count = self._rows.part(0, self.count), 0
            self._stream.add(self._group, *rows)

    def _size(self, states: States, at_least: int) -> int:
        row_bytes = 2 * len(states) * states[0].shape[-1] * states[0].itemsize
        return max(at_least, BATCH_TOKENS, min(BLOCK_ROWS, BUFFER_BYTES // row_bytes))


@dataclass
class ExcludedTokens:
    """Moments of the words that do not count. They wait in memory until the frame of the others is known."""

    _waiting: list[Rows] = field(default_factory=list)
    _moments: PairMoments | None = None

    def add(self, rows: Rows, frame: Frame | None) -> None:
        """Takes rows [S, N, D] of both models; `frame` as soon as there is one."""
        self._waiting.append(rows)
        if frame is not None and sum(waiting.n for waiting in self._waiting) >= BLOCK_ROWS // 4:
            self._sum(frame)

    def moments(self, frame: Frame | None) -> PairMoments | None:
        """Of all of them; None where none came."""
        if frame is not None and self._waiting:
            self._sum(frame)
        return self._moments

    def _sum(self, frame: Frame) -> None:
        if self._moments is None:
            self._moments = PairMoments.zeros(frame)
        self._moments.add(*Rows.joined(self._waiting))
        self._waiting = []


OnRows = Callable[[Batch, Rows], None]
"""Takes the token rows of a batch in both models, [L + 1, N, D] each."""


class MomentAccumulator:
    """Moments of all views, and samples of tokens and texts, as batches come; the models run once.

    The tokens that the analysis leaves out are summed apart, so that its numbers with all tokens can be told.

    Args:
        seed: of the sample of tokens.
        groups: where the groups of a view go; none for a view that is not in it.
        merged: so many neighbouring groups count as one.
        on_rows: is given the token rows of every batch; they are valid during the call only.
        roles: whose tokens are also summed apart.
    """

    def __init__(
        self,
        causal: bool,
        seed: int,
        groups: dict[ViewName, GroupStore],
        merged: int = 1,
        on_rows: OnRows | None = None,
        roles: Iterable[RoleName] = (),
    ) -> None:
        self._on_rows = on_rows
        self._roles = tuple(roles)
        self._seed = seed
        self._token_sample: RowSample | None = None
        self.groups = groups
        self._merged = merged
        views: tuple[ViewName, ...] = (*VIEWS, *self._roles)
        self.views = {view: self._stream(view) for view in views}
        self._causal = causal
        self._tokens = _TokenBuffer(self.views["token"])
        self._of_roles = {role: _TokenBuffer(self.views[role]) for role in self._roles}
        self._sampled: list[tuple[list[int], Rows]] = []
        self._excluded = ExcludedTokens()

    def _stream(self, view: ViewName) -> StreamedMoments:
        store = self.groups.get(view)
        sink, every = (store.put, store.every) if store is not None else (_forget, 1)
        return StreamedMoments(FRAME_TEXTS if is_of_texts(view) else FRAME_TOKENS, FRAME_BYTES, sink, every)

    @property
    def tokens(self) -> int:
        """Tokens compared so far."""
        return self.views["token"].rows + self._tokens.count

    def add(self, group: int, batch: Batch, base: States, tuned: States, left_out: Tensor | None = None) -> None:
        """Takes the states of a group's batch in both models.

        Args:
            left_out: [B, T] bool, words that do not count; for the numbers with all tokens.

        Raises:
            NotFinite: a state of this batch or of an earlier one is NaN or infinite.
        """
        group //= self._merged
        if left_out is not None and bool(left_out.any()):
            words = batch._replace(real=left_out)
            self._excluded.add(Rows(token_rows(base, words), token_rows(tuned, words)), self.views["token"].frame)
        tokens = self._tokens.room(group, int(batch.real.sum()), base)
        one, other = (
            batch_rows(states, batch, self._causal, out) for states, out in zip((base, tuned), tokens, strict=True)
        )
        if self._token_sample is None:
            self._token_sample = token_sample(len(base), base[0].shape[2], self._seed)
        self._token_sample.add(*tokens)
        for role, buffer in self._of_roles.items():
            own = role_rows(batch, tokens, role)
            if own.n:
                for place, rows in zip(buffer.room(group, own.n, base), own, strict=True):
                    place.copy_(rows)
        self.views["cls"].add(group, one.cls, other.cls)
        self.views["mean"].add(group, one.mean, other.mean)
        self._sample(batch, one.mean, other.mean)
        if self._on_rows is not None:
            self._on_rows(batch, tokens)

    def moments(self) -> dict[ViewName, PairMoments]:
        """Of each view; the last groups go to their stores. NotFinite as in `add`."""
        for buffer in (self._tokens, *self._of_roles.values()):
            buffer.flush()
        return {view: stream.finished() for view, stream in self.views.items() if view in VIEWS or stream.rows}

    def excluded_moments(self) -> PairMoments | None:
        """The moments of the words that do not count, under the token view's frame; None where there are none."""
        return self._excluded.moments(self.views["token"].frame)

    def token_sample(self) -> tuple[Tensor, Tensor]:
        """Rows of both models at random tokens, [L + 1, N, D] each; ValueError where no rows came."""
        if self._token_sample is None:
            raise ValueError("no rows received")
        return self._token_sample.rows()

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
