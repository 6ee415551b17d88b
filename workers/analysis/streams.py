"""Rows of paired representations as they stream by: their moments, and a uniform sample of them.

Neither keeps more than a fixed number of rows, whatever comes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workers.analysis.moments import Centre, PairMoments

GroupSink = Callable[[PairMoments], None]


class StreamedMoments:
    """Moments of groups of rows, group after group, under a centre that is the mean of the first rows.

    Rows are held back until the centre is known. One group's moments and the total are in memory at a time; a group
    that is complete goes to the sink.

    Args:
        centre_rows: rows that settle the centre; fewer do where no more come.
        centre_bytes: memory that rows may be held back in; what is reached first settles the centre.
        sink: takes the moments of each group once.
    """

    def __init__(self, centre_rows: int, centre_bytes: int, sink: GroupSink) -> None:
        self.rows = 0
        self._centre: Centre | None = None
        self._total: PairMoments | None = None
        self._group: PairMoments | None = None
        self._group_number = -1
        self._held: list[tuple[int, Tensor, Tensor]] = []
        self._held_bytes = 0
        self._centre_rows = centre_rows
        self._centre_bytes = centre_bytes
        self._sink = sink

    def add(self, group: int, base: Tensor, tuned: Tensor) -> None:
        """Adds rows [S, N, D] of a group to both models; groups come one after another.

        Raises:
            NotFinite: a row is NaN or infinite.
        """
        self.rows += base.shape[1]
        if self._centre is not None:
            self._count(group, base, tuned)
            return
        self._held.append((group, base, tuned))
        self._held_bytes += base.nbytes + tuned.nbytes
        if self.rows >= self._centre_rows or self._held_bytes >= self._centre_bytes:
            self._settle()

    def finished(self) -> PairMoments:
        """The moments of all rows; the last group goes to the sink. ValueError where no rows came."""
        if self._centre is None:
            self._settle()
        self._close()
        if self._total is None:
            raise ValueError("no rows came")
        return self._total

    def _settle(self) -> None:
        if not self.rows:
            raise ValueError("no rows came")
        base = torch.cat([base for _, base, _ in self._held], dim=1)
        tuned = torch.cat([tuned for _, _, tuned in self._held], dim=1)
        self._centre = Centre.of(base, tuned)
        for held in self._held:
            self._count(*held)
        self._held = []

    def _count(self, group: int, base: Tensor, tuned: Tensor) -> None:
        if self._centre is None:
            raise ValueError("the centre is not known yet")
        if self._group is None or group != self._group_number:
            self._close()
            self._group, self._group_number = PairMoments.zeros(self._centre), group
        self._group.add(base, tuned)

    def _close(self) -> None:
        if self._group is None:
            return
        self._sink(self._group)
        self._total = self._group if self._total is None else self._total.merge(self._group)
        self._group = None


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
