"""Intervals by leaving out one group of texts at a time.

Texts are the unit, since tokens of one text are alike. They are never drawn with replacement: repeated rows would raise
CKA. Source of the interval: the delete-a-group jackknife (Kott 2001) around the bias-corrected estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """The two ends of a 95 % interval."""

    low: float
    high: float


def jackknife_interval(estimate: float, left_out: Sequence[float], corrected: bool = True) -> Interval:
    """The interval around an estimate from the same estimate with each of G groups left out.

    With m the mean of `left_out`: centre G * estimate - (G - 1) * m, standard error
    sqrt((G - 1) / G * sum (left_out - m)^2), half-width t(0.975, G - 1) standard errors. Without `corrected` the centre
    is the estimate itself: for numbers that are meant for as many texts as there are.

    Raises:
        ValueError: there are fewer than two groups.
    """
    groups = len(left_out)
    if groups < 2:
        raise ValueError(f"a jackknife needs at least two groups; there are {groups}")
    mean = sum(left_out) / groups
    variance = jackknife_variance(left_out)
    centre = groups * estimate - (groups - 1) * mean if corrected else estimate
    half = float(t.ppf((1 + CONFIDENCE) / 2, groups - 1)) * variance**0.5
    return Interval(centre - half, centre + half)


def jackknife_variance(left_out: Sequence[float]) -> float:
    """Of an estimate, from the same estimate with each of G groups left out."""
    groups = len(left_out)
    mean = sum(left_out) / groups
    return (groups - 1) / groups * sum((value - mean) ** 2 for value in left_out)


def freedom_of_sum(variances: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of variances, each with its own (Welch and Satterthwaite); 1 of none at all."""
    parts = sum(variance**2 / freedom for variance, freedom in variances)
    return sum(variance for variance, _ in variances) ** 2 / parts if parts else 1.0
