"""How a stage says how far it has come."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from types import MappingProxyType
from typing import Final, Protocol

Numbers = Mapping[str, float]
NO_NUMBERS: Final[Numbers] = MappingProxyType({})


class Tick(Protocol):
    """Called between batches; raises when the job is to stop."""

    def __call__(self, fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS, /) -> None:
        """`fraction` of the stage is done, 0 to 1; `detail` is for people, `numbers` are drawn: a step, its loss."""


class SharedTicks:
    """Shares the stage's progress among its parts by what they cost."""

    def __init__(self, tick: Tick, costs: list[float]) -> None:
        ends = list(accumulate(costs))
        self._spans = iter([(end - cost, end) for end, cost in zip(ends, costs, strict=True)])
        self._whole = ends[-1] or 1.0
        self._tick = tick

    def next(self, what: str) -> Tick:
        """A tick for the next part; `what` is told where it is given no detail."""
        start, end = next(self._spans)

        def tick(fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS) -> None:
            self._tick((start + min(1.0, fraction) * (end - start)) / self._whole, detail or what, numbers)

        return tick
