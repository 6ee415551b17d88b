"""Numbers of the report with their jackknife intervals over groups of texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from layerdrift.contract.report import Measured
from workers.analysis.jackknife import jackknife_interval
from workers.analysis.proportions import change_interval, share_interval

MIN_GROUPS = 5
"""With fewer groups of texts an interval would be wider than it is worth."""


ANYWHERE = (-math.inf, math.inf)


def measured(
    value: float | None,
    left_out: Sequence[float | None] = (),
    undefined: str | None = None,
    null: float | None = None,
    corrected: bool = True,
    bounds: tuple[float, float] = ANYWHERE,
) -> Measured:
    """A number with its jackknife interval, where every group's omission left one too.

    Args:
        bounds: what the number can be; the interval ends there.
    """
    if value is None:
        return Measured(value=None, undefined=undefined)
    others = [other for other in left_out if other is not None]
    if len(others) < max(MIN_GROUPS, len(left_out)):
        return Measured(value=value, null=null)
    low, high = (min(max(end, bounds[0]), bounds[1]) for end in jackknife_interval(value, others, corrected))
    return Measured(value=value, low=low, high=high, null=null)


def share(hits: float, trials: float) -> Measured:
    """A share of texts with its interval, where there are as many texts as an interval needs."""
    value = hits / trials
    if trials < MIN_GROUPS:
        return Measured(value=value)
    low, high = share_interval(hits, trials)
    return Measured(value=value, low=low, high=high)


def change(gains: float, losses: float, pairs: float) -> Measured:
    """A difference of two shares of the same texts with its interval, like `share`."""
    value = (gains - losses) / pairs
    if pairs < MIN_GROUPS:
        return Measured(value=value)
    low, high = change_interval(gains, losses, pairs)
    return Measured(value=value, low=low, high=high)


def ratio(
    sums: Tensor,
    counts: Tensor,
    transform: Callable[[float], float] = float,
    bounds: tuple[float, float] = ANYWHERE,
) -> Measured:
    """A mean over examples from its sums and counts by group of texts, each [G], with its interval.

    Groups without examples are left out; `transform` and `bounds` are of the number that is shown.
    """
    total, count = float(sums.sum()), float(counts.sum())
    groups = [(float(some), float(many)) for some, many in zip(sums, counts, strict=True) if many]
    left = [(total - some, count - many) for some, many in groups]
    left_out = [transform(some / many) if many else None for some, many in left]
    return measured(transform(total / count), left_out, bounds=bounds)
