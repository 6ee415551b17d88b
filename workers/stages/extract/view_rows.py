"""Rows of the three views at one layer as batches come, and their similarities at the end.

Rows are kept as they are while there is room; of more of them the moments are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from layerdrift.contract.names import ViewName
from workers.analysis.moments import Frame, NotFinite, PairMoments
from workers.analysis.row_similarity import similarities_of_rows
from workers.analysis.similarity import SiteSimilarity, similarities
from workers.analysis.streams import Group, Rows, StreamedMoments
from workers.models.chats import TOKEN_ROLES
from workers.models.texts import Batch
from workers.scratch import GroupStore
from workers.stages.common.intervals import MIN_GROUPS
from workers.stages.common.left_out import LeftOut
from workers.stages.common.moment_accumulator import (
    FRAME_BYTES,
    FRAME_TEXTS,
    FRAME_TOKENS,
    GroupPlan,
    batch_rows,
    group_memory,
    is_of_texts,
    role_rows,
)
from workers.stages.common.view_similarity import ViewSimilarity

HELD_BYTES = 256 << 20
"""Room for the rows of a view of both models."""


@dataclass(frozen=True)
class ViewFound:
    """A view at one layer: its similarities, and the frame of its rows; of a single site.

    with_others: CKA and relative L2 of these rows and of others that do not count; None where there are none.
    """

    similarity: ViewSimilarity
    frame: Frame
    with_others: SiteSimilarity | None = None


class ViewRows:
    """Rows of both models at one layer.

    Args:
        counts: by view that is asked for, about how many rows will come; of roles those of the names of roles.
        width: D. folder: where groups of texts go that do not fit into memory.
        plan: what is kept of the groups, for intervals; None: nothing.
    """

    def __init__(
        self, counts: dict[ViewName, int], width: int, causal: bool, folder: Path, plan: GroupPlan | None = None
    ) -> None:
        self._causal = causal
        self._merged = plan.merged if plan is not None else 1
        self._views: dict[ViewName, _HeldRows | _ManyRows] = {
            view: _HeldRows(view, grouped=plan is not None)
            if 2 * count * width * torch.float32.itemsize <= HELD_BYTES
            else _ManyRows(view, folder / view, plan.every.get(view, 1) if plan is not None else None)
            for view, count in counts.items()
        }
        self._roles = [role for role in TOKEN_ROLES if role in counts]

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
        rows |= {role: role_rows(batch, rows["token"], role) for role in self._roles}
        for view, taking in self._views.items():
            taking.add(group // self._merged, rows[view])
        return rows

    def found(self, others: Rows | None = None) -> dict[ViewName, ViewFound]:
        """Of every view; NotFinite as in `add`, ValueError where no rows came. A role without rows is left out.

        Args:
            others: rows [1, N, D] of the tokens that do not count.
        """
        return {
            view: taking.found(others if view == "token" else None)
            for view, taking in self._views.items()
            if taking.rows or view not in self._roles
        }

    def clear(self) -> None:
        """Removes what is on disk."""
        for taking in self._views.values():
            taking.clear()


class _ManyRows:
    """Sums of rows. every: of a group's rows, each such one is kept for intervals; None: there are none."""

    def __init__(self, view: ViewName, folder: Path, every: int | None) -> None:
        self._store = GroupStore(folder, group_memory(view), every) if every is not None else None
        sink = self._store.put if self._store is not None else _forget
        self._stream = StreamedMoments(
            FRAME_TEXTS if is_of_texts(view) else FRAME_TOKENS, FRAME_BYTES, sink, every if every is not None else 1
        )

    @property
    def rows(self) -> int:
        return self._stream.rows

    def add(self, group: int, rows: Rows) -> None:
        if rows.n:
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


class _HeldRows:
    """The rows themselves, by group."""

    def __init__(self, view: ViewName, grouped: bool) -> None:
        self._frame_rows = FRAME_TEXTS if is_of_texts(view) else FRAME_TOKENS
        self._grouped = grouped
        self._rows: dict[int, list[Rows]] = {}

    @property
    def rows(self) -> int:
        return sum(part.n for parts in self._rows.values() for part in parts)

    def add(self, group: int, rows: Rows) -> None:
        for side, part in zip(("base", "tuned"), rows, strict=True):
            if not bool(torch.isfinite(part).all()):
                raise NotFinite(side, 0)
        if rows.n:
            self._rows.setdefault(group, []).append(rows)

    def found(self, others: Rows | None) -> ViewFound:
        if not self._rows:
            raise ValueError("no rows received")
        groups = [Rows.joined(parts) for parts in self._rows.values()]
        frame = Frame.of(*_first(groups, self._frame_rows))
        grouped = self._grouped and len(groups) >= MIN_GROUPS
        found = similarities_of_rows(groups, frame, grouped, others)
        left_out = LeftOut([[site] for site in found.left_out])
        similarity = ViewSimilarity(sum(group.n for group in groups), [found.whole], left_out)
        return ViewFound(similarity, frame, found.with_others)

    def clear(self) -> None:
        self._rows = {}


def _first(groups: Sequence[Rows], count: int) -> Rows:
    """So many of the first rows, or all."""
    kept, left = list[Rows](), count
    for group in groups:
        kept.append(group.part(0, left))
        left -= kept[-1].n
        if left <= 0:
            break
    return Rows.joined(kept)


def _forget(_: Group) -> None:
    """Takes a group where nothing is kept of it."""
