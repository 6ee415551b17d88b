"""Rows of paired representations as they stream by: the moments of all, and what is kept of each group of them.

Nothing here keeps more than a fixed number of rows, whatever comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from workers.analysis.moments import BLOCK_ROWS, Frame, PairMoments

ROWS_PER_WIDTH = 3
"""The moments of a group are three D x D sums: up to so many rows for each D, the rows themselves are the smaller."""


class Rows(NamedTuple):
    """Rows of both models at the same positions, [S, N, D] each."""

    base: Tensor
    tuned: Tensor

    @property
    def n(self) -> int:
        """N."""
        return self.base.shape[1]

    @staticmethod
    def joined(parts: list[Rows]) -> Rows:
        """One after another."""
        if len(parts) == 1:
            return parts[0]
        return Rows(torch.cat([part.base for part in parts], 1), torch.cat([part.tuned for part in parts], 1))


GroupSink = Callable[[PairMoments | Rows], None]


class StreamedMoments:
    """Moments of groups of rows, group after group, under a frame that is taken from the first rows.

    Rows are held back until the frame is known. Each group goes to the sink when it is complete: as its rows where it
    is small, else as its moments, so that at most one group and the total are in memory.

    Args:
        frame_rows: rows that settle the frame; fewer do where no more come.
        frame_bytes: memory that rows may be held back in; what is reached first settles the frame.
        sink: takes each group once.
    """

    def __init__(self, frame_rows: int, frame_bytes: int, sink: GroupSink) -> None:
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

    def add(self, group: int, base: Tensor, tuned: Tensor) -> None:
        """Adds rows [S, N, D] of a group to both models; groups come one after another.

        Raises:
            NotFinite: a row is NaN or infinite.
        """
        rows = Rows(base, tuned)
        self.rows += rows.n
        if self._frame is not None:
            self._count(self._frame, group, rows)
            return
        self._held.append((group, rows))
        self._held_bytes += base.nbytes + tuned.nbytes
        if self.rows >= self._frame_rows or self._held_bytes >= self._frame_bytes:
            self._settle()

    def finished(self) -> PairMoments:
        """The moments of all rows; the last group goes to the sink. ValueError where no rows came."""
        if self._frame is None:
            self._settle()
        self._close()
        if self._total is None:
            raise ValueError("no rows came")
        return self._total.moments()

    def _settle(self) -> None:
        if not self.rows:
            raise ValueError("no rows came")
        self._frame = Frame.of(*Rows.joined([rows for _, rows in self._held]))
        for group, rows in self._held:
            self._count(self._frame, group, rows)
        self._held = []

    def _count(self, frame: Frame, group: int, rows: Rows) -> None:
        if self._total is None:
            self._total = _Buffered(frame)
        if self._group is None or group != self._group_number:
            self._close()
            self._group, self._group_number = _Group(frame), group
        self._group.add(rows)

    def _close(self) -> None:
        if self._group is None or self._total is None:
            return
        found = self._group.finished()
        self._sink(found)
        if isinstance(found, Rows):
            self._total.add(found)
        else:
            self._total.merge(found)
        self._group = None


class _Buffered:
    """Moments of rows that are summed a block at a time, however few come at once."""

    def __init__(self, frame: Frame) -> None:
        self._moments = PairMoments.zeros(frame)
        self._pending: list[Rows] = []

    def add(self, rows: Rows) -> None:
        self._pending.append(rows)
        if sum(part.n for part in self._pending) >= BLOCK_ROWS:
            self._flush()

    def merge(self, moments: PairMoments) -> None:
        self._moments.merge(moments)

    def moments(self) -> PairMoments:
        self._flush()
        return self._moments

    def _flush(self) -> None:
        if self._pending:
            self._moments.add(*Rows.joined(self._pending))
        self._pending = []


class _Group:
    """One group: its rows while they are few, its moments from then on."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._few = ROWS_PER_WIDTH * frame.base.shape[1]
        self._rows: list[Rows] = []
        self._count = 0
        self._moments: _Buffered | None = None

    def add(self, rows: Rows) -> None:
        self._count += rows.n
        if self._moments is not None:
            self._moments.add(rows)
            return
        self._rows.append(rows)
        if self._count > self._few:
            self._moments = _Buffered(self._frame)
            for part in self._rows:
                self._moments.add(part)
            self._rows = []

    def finished(self) -> PairMoments | Rows:
        return Rows.joined(self._rows) if self._moments is None else self._moments.moments()


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
        for row in (places < self._size).nonzero().squeeze(1).tolist():
            for kept, offered in zip(self._kept, (base, tuned), strict=True):
                kept[:, places[row]] = offered[:, row]

    def rows(self) -> tuple[Tensor, Tensor]:
        """The sample of both models, [S, min(seen, size), D] each; ValueError where no rows came."""
        if self._kept is None:
            raise ValueError("no rows came")
        count = min(self._seen, self._size)
        return self._kept[0][:, :count], self._kept[1][:, :count]
