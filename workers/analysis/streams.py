"""Rows of paired representations as they stream by: the moments of all, and what is kept of each group of them.

Nothing here keeps more than a fixed number of rows, whatever comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from workers.analysis.moments import Frame, PairMoments

ROWS_PER_WIDTH = 2
"""Up to so many rows for each D a group is kept as its rows: its moments would cost more to sum than the room saved."""

PENDING_ROWS = 512
"""Few rows wait until there are so many, and are summed at once."""


class Rows(NamedTuple):
    """Rows of both models at the same positions, [S, N, D] each."""

    base: Tensor
    tuned: Tensor

    @property
    def n(self) -> int:
        """N."""
        return self.base.shape[1]

    def copy(self) -> Rows:
        """In memory of their own."""
        return Rows(self.base.clone(), self.tuned.clone())

    @staticmethod
    def empty(like: Tensor, sites: int, count: int) -> Rows:
        """Memory for so many rows of so many sites, of the width and kind of `like` [..., D]."""
        base, tuned = like.new_empty(2, sites, count, like.shape[-1])
        return Rows(base, tuned)

    def part(self, first: int, last: int) -> Rows:
        """Rows from number `first` to before number `last`, in the same memory."""
        return Rows(self.base[:, first:last], self.tuned[:, first:last])

    @staticmethod
    def joined(parts: list[Rows]) -> Rows:
        """One after another."""
        if len(parts) == 1:
            return parts[0]
        return Rows(torch.cat([part.base for part in parts], 1), torch.cat([part.tuned for part in parts], 1))


Group = PairMoments | Rows
GroupSink = Callable[[Group], None]


class StreamedMoments:
    """Moments of groups of rows, group after group, under a frame that is taken from the first rows.

    Rows are held back until the frame is known. Each group goes to the sink when it is complete: as its rows where it
    is small, else as its moments, so that at most one group and the total are in memory.

    Args:
        frame_rows: rows that settle the frame; fewer do where no more come.
        frame_bytes: memory that rows may be held back in; what is reached first settles the frame.
        sink: takes each group once, and keeps no reference to it: its memory is used again.
        every: of a group's rows, each such one goes to the sink; 1: all. The total is always of all rows.
    """

    def __init__(self, frame_rows: int, frame_bytes: int, sink: GroupSink, every: int = 1) -> None:
        self.rows = 0
        self._frame: Frame | None = None
        self._total: _Buffered | None = None
        self._group: _Group | None = None
        self._group_number = -1
        self._held: list[tuple[int, Rows]] = []
        self._held_bytes = 0
        self._frame_rows = frame_rows
        self._frame_bytes = frame_bytes
        self._sink = sink
        self._every = every
        self._next_kept = 0

    @property
    def frame(self) -> Frame | None:
        """What rows are summed under; None before it is settled."""
        return self._frame

    def add(self, group: int, base: Tensor, tuned: Tensor) -> None:
        """Adds rows [S, N, D] of a group to both models; groups come one after another. Keeps no reference to them.

        Raises:
            NotFinite: a row is NaN or infinite.
        """
        rows = Rows(base, tuned)
        self.rows += rows.n
        if self._frame is not None:
            self._count(self._frame, group, rows)
            return
        self._held.append((group, rows.copy()))
        self._held_bytes += base.nbytes + tuned.nbytes
        if self.rows >= self._frame_rows or self._held_bytes >= self._frame_bytes:
            self._settle()

    def finished(self) -> PairMoments:
        """The moments of all rows; the last group goes to the sink. ValueError where no rows came."""
        if self._frame is None:
            self._settle()
        self._close()
        if self._total is None:
            raise ValueError("no rows received")
        return self._total.moments()

    def _settle(self) -> None:
        if not self.rows:
            raise ValueError("no rows received")
        self._frame = Frame.of(*Rows.joined([rows for _, rows in self._held]))
        for group, rows in self._held:
            self._count(self._frame, group, rows)
        self._held = []

    def _count(self, frame: Frame, group: int, rows: Rows) -> None:
        if self._total is None:
            self._total = _Buffered(frame)
            self._group = _Group(frame)
        if self._group is not None and group != self._group_number:
            self._close()
            self._group_number = group
        if self._every > 1:
            self._total.add(rows)
            rows = self._thinned(rows)
        if self._group is not None:
            self._group.add(rows)

    def _thinned(self, rows: Rows) -> Rows:
        """Each row of so many, counted over all that came: so of every text."""
        kept = Rows(*(side[:, self._next_kept :: self._every] for side in rows))
        self._next_kept = (self._next_kept - rows.n) % self._every
        return kept

    def _close(self) -> None:
        if self._group is None or self._total is None or not self._group.rows:
            return
        found = self._group.finished()
        self._sink(found)
        if self._every == 1:  # else all rows are in the total already
            self._total.merge(found) if isinstance(found, PairMoments) else self._total.add(found)
        self._group.reset()


class _Buffered:
    """Moments of rows that are summed a block at a time, however few come at once."""

    def __init__(self, frame: Frame) -> None:
        self._moments = PairMoments.zeros(frame)
        self._pending: Rows | None = None
        self._count = 0

    def add(self, rows: Rows) -> None:
        """Sums many rows at once; of few it keeps a copy until there are more."""
        if rows.n > PENDING_ROWS // 2:
            self._moments.add(*rows)
            return
        if self._pending is None:
            self._pending = Rows.empty(rows.base, len(rows.base), PENDING_ROWS)
        if self._count + rows.n > PENDING_ROWS:
            self._flush()
        for place, side in zip(self._pending.part(self._count, self._count + rows.n), rows, strict=True):
            place.copy_(side)
        self._count += rows.n

    def merge(self, moments: PairMoments) -> None:
        self._moments.merge(moments)

    def moments(self) -> PairMoments:
        self._flush()
        return self._moments

    def reset(self) -> None:
        self._moments.clear()

    def _flush(self) -> None:
        if self._pending is not None and self._count:
            self._moments.add(*self._pending.part(0, self._count))
            self._count = 0


class _Group:
    """One group: its rows while they are few, its moments from then on. Its memory serves one group after another."""

    def __init__(self, frame: Frame) -> None:
        self.rows = 0
        self._frame = frame
        self._few = ROWS_PER_WIDTH * frame.base.shape[1]
        self._kept: list[Rows] = []
        self._moments: _Buffered | None = None

    def add(self, rows: Rows) -> None:
        self.rows += rows.n
        if self.rows <= self._few:
            self._kept.append(rows.copy())
            return
        if self._moments is None:
            self._moments = _Buffered(self._frame)
        for part in self._kept:
            self._moments.add(part)
        self._kept = []
        self._moments.add(rows)

    def finished(self) -> Group:
        if self.rows <= self._few or self._moments is None:
            return Rows.joined(self._kept)
        return self._moments.moments()

    def reset(self) -> None:
        if self.rows > self._few and self._moments is not None:
            self._moments.reset()
        self.rows, self._kept = 0, []


class RowSample:
    """A uniform random sample of the rows that came (Vitter's algorithm R, a batch at a time)."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self._size = size
        self._generator = generator
        self._seen = 0
        self._kept: tuple[Tensor, Tensor] | None = None

    def add(self, base: Tensor, tuned: Tensor) -> None:
        """Offers rows [S, N, D] of both models."""
        if self._kept is None:
            shape = (base.shape[0], self._size, base.shape[2])
            self._kept = base.new_empty(shape), tuned.new_empty(shape)
        arrival = torch.arange(self._seen, self._seen + base.shape[1])
        drawn = (torch.rand(len(arrival), dtype=torch.float64, generator=self._generator) * (arrival + 1)).long()
        places = torch.where(arrival < self._size, arrival, drawn)
        self._seen += len(arrival)
        row_of = {int(places[row]): row for row in (places < self._size).nonzero().squeeze(1).tolist()}
        if row_of:
            kept, chosen = torch.tensor(list(row_of)), torch.tensor(list(row_of.values()))
            for sample, rows in zip(self._kept, (base, tuned), strict=True):
                sample[:, kept] = rows[:, chosen]

    def rows(self) -> tuple[Tensor, Tensor]:
        """The sample of both models, [S, min(seen, size), D] each; ValueError where no rows came."""
        if self._kept is None:
            raise ValueError("no rows received")
        count = min(self._seen, self._size)
        return self._kept[0][:, :count], self._kept[1][:, :count]
