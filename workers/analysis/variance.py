"""Variance over seeds and over tasks: one-way random effects, from groups of repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Interval(NamedTuple):
    """Ends of a 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Within:
    """Spread over repeats, pooled over their groups."""

    sd: float
    interval: Interval
    degrees: int

    @property
    def reseeding(self) -> float:
        """Largest difference between two single fine-tunes that their seeds explain, in 95 % of cases."""
        return float(stats.t.ppf((1 + LEVEL) / 2, self.degrees) * np.sqrt(2.0) * self.sd)


@dataclass(frozen=True, kw_only=True)
class Between:
    """Spread over tasks beyond that over repeats."""

    sd: float
    share: float
    interval: Interval
    p: float


def within(groups: Sequence[Sequence[float]]) -> Within | None:
    """The pooled standard deviation of groups of repeats; None where no group has two, or nothing varies.

    The interval is the chi-square interval of normal data.
    """
    squares, degrees = _within_squares(groups)
    if degrees == 0 or squares <= 0:
        return None
    low, high = (stats.chi2.ppf(part, degrees) for part in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    return Within(
        sd=float(np.sqrt(squares / degrees)),
        interval=Interval(float(np.sqrt(squares / low)), float(np.sqrt(squares / high))),
        degrees=degrees,
    )


def between(recipes: Mapping[str, Sequence[Sequence[float]]]) -> Between | None:
    """How much tasks differ beyond repeats. None where no recipe has two tasks, or no group has two repeats.

    Args:
        recipes: by recipe, for each task its repeats. Recipes differ in their means; tasks are compared within each.

    The F statistic compares the mean squares over group means, weighted by the harmonic mean of the groups' sizes
    (Thomas and Hultquist 1978), exact where all groups are of one size; so is the interval of the share.
    """
    groups = [group for of_task in recipes.values() for group in of_task]
    squares, degrees = _within_squares(groups)
    compared = [np.array([np.mean(group) for group in of_task]) for of_task in recipes.values() if len(of_task) > 1]
    between_degrees = sum(len(means) - 1 for means in compared)
    if degrees == 0 or between_degrees == 0 or squares <= 0:
        return None
    size = stats.hmean([len(group) for of_task in recipes.values() if len(of_task) > 1 for group in of_task])
    spread = sum(float(((means - means.mean()) ** 2).sum()) for means in compared) / between_degrees
    seeds = squares / degrees
    statistic = size * spread / seeds
    tails = [stats.f.ppf(part, between_degrees, degrees) for part in ((1 + LEVEL) / 2, (1 - LEVEL) / 2)]
    low, high = (_share(max(0.0, (statistic / tail - 1) / size)) for tail in tails)
    variance = max(0.0, spread - seeds / size)
    return Between(
        sd=float(np.sqrt(variance)),
        share=variance / (variance + seeds),
        interval=Interval(low, high),
        p=float(stats.f.sf(statistic, between_degrees, degrees)),
    )


def _within_squares(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Sum of squares about the groups' means, and its degrees of freedom."""
    values = [np.asarray(group, dtype=np.float64) for group in groups]
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in values if len(group) > 1)
    return squares, sum(len(group) - 1 for group in values if len(group) > 1)


def _share(ratio: float) -> float:
    """Of two variances with this ratio, the first one's share of their sum."""
    return float(ratio / (1 + ratio))
