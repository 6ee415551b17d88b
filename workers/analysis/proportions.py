"""Intervals of proportions that hold near 0 and 1, where leaving out groups finds no variance at all.

Sources: Wilson (1927), recommended by Brown, Cai and DasGupta (2001); for differences of paired proportions Agresti and
Min (2005). Pure mathematics on counts.
"""

from __future__ import annotations

from scipy.stats import norm

from workers.analysis.jackknife import CONFIDENCE, Interval

QUANTILE = float(norm.ppf((1 + CONFIDENCE) / 2))


def share_interval(hits: float, trials: float) -> Interval:
    """Wilson's score interval of a share, 0 to 1: `hits` of `trials` independent trials.

    Raises:
        ValueError: there are no trials, or more hits than trials.
    """
    if not 0 <= hits <= trials or not trials:
        raise ValueError(f"a share needs trials, and at most as many hits; there are {hits:g} of {trials:g}")
    square = QUANTILE**2
    share, spread = hits / trials, 1 + square / trials
    middle = (share + square / (2 * trials)) / spread
    half = QUANTILE / spread * (share * (1 - share) / trials + square / (4 * trials**2)) ** 0.5
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def change_interval(gains: float, losses: float, pairs: float) -> Interval:
    """The interval of a difference of two shares on the same trials, -1 to 1, after Agresti and Min.

    Half a pair is added to each of the four outcomes (both, neither, only one, only the other).

    Args:
        gains: trials that the second hits and the first misses; losses: the other way round.
        pairs: all trials.

    Raises:
        ValueError: there are no trials, or more gains and losses than trials.
    """
    if min(gains, losses) < 0 or gains + losses > pairs or not pairs:
        raise ValueError(f"{gains:g} gains and {losses:g} losses of {pairs:g} pairs are impossible")
    change, variance = adjusted(gains - losses, gains + losses, pairs)
    half = QUANTILE * variance**0.5
    return Interval(max(-1.0, change - half), min(1.0, change + half))


def adjusted(total: float, squares: float, pairs: float) -> tuple[float, float]:
    """The mean of differences and its variance, with the four halves of a pair of Agresti and Min added.

    Args:
        total, squares: sums over the pairs of their difference, -1 to 1, and of its square.
    """
    count = pairs + 2
    mean = total / count
    return mean, ((squares + 1) / count - mean**2) / count
