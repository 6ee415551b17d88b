"""Rows of the three views at one layer as batches come, and their similarities at the end.

Few rows are kept as they are and measured in as few directions; of many the moments are summed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from layerdrift.contract.names import ViewName
from workers.analysis.few_rows import few, rotated, standardised
from workers.analysis.moments import Frame, NotFinite, PairMoments
from workers.analysis.similarity import SiteSimilarity, similarities
from workers.analysis.streams import Group, Rows, StreamedMoments
from workers.models.texts import Batch
from workers.scratch import GroupStore
from workers.stages.common.left_out import LeftOut
from workers.stages.common.moment_accumulator import (
    FRAME_BYTES,
    FRAME_TEXTS,
    FRAME_TOKENS,
    GROUP_MEMORY_BYTES,
    GroupPlan,
    batch_rows,
)
from workers.stages.common.view_similarity import ViewSimilarity


@dataclass(frozen=True)
class ViewFound:
    """A view at one layer: its similarities, and the frame of its rows; of a single site.

    with_others: of these rows and of others that do not count; None where there are none.
    """

    similarity: ViewSimilarity
    frame: Frame
    with_others: SiteSimilarity | None = None


class ViewRows:
    """Rows of both models at one layer.

    Args:
        counts: by view that is asked for, about how many rows will come.
        width: D. folder: where groups of texts go that do not fit into memory.
        plan: what is kept of the groups, for intervals; None: nothing.
    """

    def __init__(
        self, counts: dict[ViewName, int], width: int, causal: bool, folder: Path, plan: GroupPlan | None = None
    ) -> None:
        self._causal = causal
        self._merged = plan.merged if plan is not None else 1
        self._views: dict[ViewName, _FewRows | _ManyRows] = {
            view: _FewRows(grouped=plan is not None)
            if few(count, width)
            else _ManyRows(view, folder / view, plan.every[view] if plan is not None else None)
            for view, count in counts.items()
        }

    def add(self, group: int, batch: Batch, base: Tensor, tuned: Tensor) -> dict[ViewName, Rows]:
        """Takes the states of a group's batch, [B, T, D] float32 each; gives back its rows, [1, N, D] by view.

        Raises:
            NotFinite: a state is NaN or infinite.
        """
        one, other = batch_rows([base], batch, self._causal), batch_rows([tuned], batch, self._causal)
        rows: dict[ViewName, Rows] = {
            "token": Rows(one.tokens, other.tokens),
            "cls": Rows(one.cls, other.cls),
            "mean": Rows(one.mean, other.mean),
        }
        for view, taking in self._views.items():
            taking.add(group // self._merged, rows[view])
        return rows

    def found(self, others: Rows | None = None) -> dict[ViewName, ViewFound]:
        """Of every view; NotFinite as in `add`, ValueError where no rows came.

        Args:
            others: rows [1, N, D] of the tokens that do not count.
        """
        return {view: taking.found(others if view == "token" else None) for view, taking in self._views.items()}

    def clear(self) -> None:
        """Removes what is on disk."""
        for taking in self._views.values():
            taking.clear()


class _ManyRows:
    """Sums of rows. every: of a group's rows, each such one is kept for intervals; None: there are none."""

    def __init__(self, view: ViewName, folder: Path, every: int | None) -> None:
        self._store = GroupStore(folder, GROUP_MEMORY_BYTES[view], every) if every is not None else None
        sink = self._store.put if self._store is not None else _forget
        self._stream = StreamedMoments(
            FRAME_TOKENS if view == "token" else FRAME_TEXTS, FRAME_BYTES, sink, every if every is not None else 1
        )

    def add(self, group: int, rows: Rows) -> None:
        self._stream.add(group, *rows)

    def found(self, others: Rows | None) -> ViewFound:
        moments = self._stream.finished()
        with_others = None
        if others is not None:
            whole = PairMoments.zeros(moments.frame)
            whole.add(*others)
            whole.merge(moments)
            with_others = similarities(whole)[0]
        return ViewFound(ViewSimilarity.of(moments, self._store, lambda _: None), moments.frame, with_others)

    def clear(self) -> None:
        if self._store is not None:
            self._store.clear()


class _FewRows:
    """The rows themselves."""

    def __init__(self, grouped: bool) -> None:
        self._grouped = grouped
        self._rows: list[tuple[int, Rows]] = []

    def add(self, group: int, rows: Rows) -> None:
        for side, part in zip(("base", "tuned"), rows, strict=True):
            if not bool(torch.isfinite(part).all()):
                raise NotFinite(side, 0)
        if rows.n:
            self._rows.append((group, rows))

    def found(self, others: Rows | None) -> ViewFound:
        if not self._rows:
            raise ValueError("no rows received")
        rows = Rows.joined([part for _, part in self._rows])
        frame = Frame.of(*rows)
        plain = self._similarity(rotated(rows))
        scaled = self._similarity(rotated(standardised(rows, frame)))
        groups = zip(plain.left_out.by_group, scaled.left_out.by_group, strict=True)
        left_out = [[_with_standardised(*pair) for pair in zip(*sites, strict=True)] for sites in groups]
        site = _with_standardised(plain.sites[0], scaled.sites[0])
        return ViewFound(ViewSimilarity(rows.n, [site], LeftOut(left_out)), frame, _whole(rows, others))

    def clear(self) -> None:
        self._rows = []

    def _similarity(self, rows: Rows) -> ViewSimilarity:
        frame = Frame.of(*rows)
        total, groups = PairMoments.zeros(frame), list(self._by_group(rows))
        total.add(*rows)
        store = GroupStore(Path(), sum(part.base.nbytes + part.tuned.nbytes for part in groups))
        for part in groups if self._grouped else ():
            store.put(part)
        return ViewSimilarity.of(total, store, lambda _: None)

    def _by_group(self, rows: Rows) -> Iterable[Rows]:
        """The rows of one group after another."""
        start, last = 0, 0
        for number, (group, part) in enumerate(self._rows):
            last += part.n
            if number + 1 == len(self._rows) or self._rows[number + 1][0] != group:
                yield rows.part(start, last)
                start = last


def _whole(rows: Rows, others: Rows | None) -> SiteSimilarity | None:
    if others is None:
        return None
    every = Rows.joined([rows, others])
    turned = rotated(every) if 2 * every.n <= every.base.shape[2] else every
    moments = PairMoments.zeros(Frame.of(*turned))
    moments.add(*turned)
    return similarities(moments)[0]


def _with_standardised(site: SiteSimilarity, scaled: SiteSimilarity) -> SiteSimilarity:
    """Its CKA of standardised features is the CKA of rows that were standardised before."""
    return replace(site, cka_standardized=scaled.cka) if site.cka is not None else site


def _forget(_: Group) -> None:
    """Takes a group where nothing is kept of it."""
