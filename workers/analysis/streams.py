"""Rows of paired representations as they stream by: their moments, and a uniform sample of them.

Neither keeps more than a fixed number of rows, whatever comes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.analysis.moments import Centre, PairMoments


class StreamedMoments:
    """Moments under a centre that is the mean of the first rows, which are held back until it is known.

    Args:
        centre_rows: rows that settle the centre; fewer do where no more come.
        centre_bytes: memory that rows may be held back in; what is reached first settles the centre.
    """

    def __init__(self, centre_rows: int, centre_bytes: int) -> None:
        self.rows = 0
        self._moments: PairMoments | None = None
        self._held: list[tuple[Tensor, Tensor]] = []
        self._held_bytes = 0
        self._centre_rows = centre_rows
        self._centre_bytes = centre_bytes

    def add(self, base: Tensor, tuned: Tensor) -> None:
        """Adds rows [S, N, D] of both models; NotFinite where one is NaN or infinite."""
        self.rows += base.shape[1]
        if self._moments is not None:
            self._moments.add(base, tuned)
            return
        self._held.append((base, tuned))
        self._held_bytes += base.nbytes + tuned.nbytes
        if self.rows >= self._centre_rows or self._held_bytes >= self._centre_bytes:
            self._settle()

    def finished(self) -> PairMoments:
        """The moments of all rows; ValueError where none came."""
        return self._moments if self._moments is not None else self._settle()

    def _settle(self) -> PairMoments:
        if not self.rows:
            raise ValueError("no rows came")
        base, tuned = (torch.cat([held[side] for held in self._held], dim=1) for side in (0, 1))
        moments = self._moments = PairMoments.zeros(Centre.of(base, tuned))
        for rows in self._held:
            moments.add(*rows)
        self._held = []
        return moments


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
