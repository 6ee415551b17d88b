"""How a stage reports its progress: a callback between batches, and named spans for its parts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from types import MappingProxyType
from typing import Final, Protocol

Numbers = Mapping[str, float]
NO_NUMBERS: Final[Numbers] = MappingProxyType({})


class OnProgress(Protocol):
    """Called between batches; raises when the job is to stop."""

    def __call__(self, fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS, /) -> None:
        """`fraction` of the stage is done, 0 to 1; `detail` is for people, `numbers` are drawn: a step, its loss."""


class Spans:
    """Shares the progress of a stage among its parts, by name.

    A part that was not planned shows its detail and moves nothing; a planned one that does not run is passed over. So a
    part can be added in one place without another.

    Args:
        costs: of the parts in their order, in any unit.
    """

    def __init__(self, on_progress: OnProgress, costs: Mapping[str, float]) -> None:
        ends = accumulate(costs.values())
        self._spans = {name: (end - costs[name], end) for name, end in zip(costs, ends, strict=True)}
        self._whole = sum(costs.values()) or 1.0
        self._reached = 0.0
        self._on_progress = on_progress

    def span(self, name: str, detail: str | None = None) -> OnProgress:
        """The progress of one part; `detail`, by default its name, is shown where a call gives none."""
        start, end = self._spans.get(name, (self._reached, self._reached))
        shown = name if detail is None else detail

        def on_progress(fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS) -> None:
            self._reached = max(self._reached, start + min(1.0, fraction) * (end - start))
            self._on_progress(self._reached / self._whole, detail or shown, numbers)

        return on_progress
