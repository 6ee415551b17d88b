"""Intervals of proportions that hold near 0 and 1, where leaving out groups finds no variance at all.

Sources: Wilson (1927), recommended by Brown, Cai and DasGupta (2001); for differences of paired proportions Agresti and
Min (2005); for trials that come in clusters the effective number of trials of Korn and Graubard (1998). Pure
mathematics on counts.
"""

from __future__ import annotations

from scipy.stats import norm, t
from torch import Tensor

from workers.analysis.jackknife import CONFIDENCE, Interval

QUANTILE = float(norm.ppf((1 + CONFIDENCE) / 2))


def share_interval(hits: float, trials: float) -> Interval:
    """Wilson's score interval of a share, 0 to 1: `hits` of `trials` independent trials.

    Raises:
        ValueError: there are no trials, or more hits than trials.
    """
    if not 0 <= hits <= trials or not trials:
        raise ValueError(
            f"a share needs at least one trial, and no more hits than trials; there are {hits:g} of {trials:g}"
        )
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


def effective(values: Tensor, counts: Tensor) -> float:
    """How many independent trials tell as much of a mean as these, which come in clusters; 1 to their number.

    The variance of one trial over the variance that the clusters' sums give the mean. Where no trial differs from
    another there is no variance to compare: then each cluster counts once. Corrected for the few clusters that the
    variance is estimated from (Korn and Graubard 1998), of which fewer count where few clusters make most of it: the
    degrees of freedom are those of a variance of numbers of this kurtosis.

    Args:
        values: sums over each cluster of what is averaged, [M, 2]: of the number, and of its square.
        counts: trials of each cluster, [M].

    Raises:
        ValueError: fewer than two clusters have a trial.
    """
    some = counts > 0
    (sums, squares), counts = values[some].double().T, counts[some].double()
    clusters, trials = len(counts), float(counts.sum())
    if clusters < 2:
        raise ValueError(f"{clusters} clusters with trials are too few to estimate the variance between clusters")
    if clusters == trials:
        return trials
    mean = float(sums.sum()) / trials
    of_one = float(squares.sum()) / trials - mean**2
    of_mean = clusters / (clusters - 1) * float((sums - mean * counts).square().sum()) / trials**2
    if of_one <= 0:
        return float(clusters)
    if of_mean <= 0:
        return trials
    squared = (sums - mean * counts).square()
    peaked = clusters * float(squared.square().sum()) / float(squared.sum()) ** 2
    freedom = max(1.0, min(clusters - 1, 2 * clusters / max(peaked - 1, 1e-9)))
    few = (QUANTILE / float(t.ppf((1 + CONFIDENCE) / 2, freedom))) ** 2
    return max(1.0, min(trials, few * of_one / of_mean))
