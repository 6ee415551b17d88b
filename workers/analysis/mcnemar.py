"""McNemar's exact test: whether two classifiers are right equally often on the same examples (McNemar 1947)."""

from __future__ import annotations

from scipy.stats import binomtest


def mcnemar_p(gained: int, lost: int) -> float:
    """The probability of a split at least as uneven of the examples that one of two is right about, in 0 to 1.

    Two-sided and exact: the number gained is binomial with p = 1/2 where both are right equally often.

    Args:
        gained: examples that only the second is right about. lost: that only the first is.
    """
    if gained + lost == 0:
        return 1.0
    return float(binomtest(gained, gained + lost, 0.5).pvalue)
