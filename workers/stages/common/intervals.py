"""Numbers of the report with their jackknife intervals over groups of texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from scipy.stats import t
from torch import Tensor

from workers.analysis.jackknife import CONFIDENCE, freedom_of_sum, jackknife_interval, jackknife_variance
from workers.analysis.proportions import change_interval, effective, share_interval
from workers.results.measured import Measured

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
        return Measured(value=value, noise_floor=null)
    low, high = (min(max(end, bounds[0]), bounds[1]) for end in jackknife_interval(value, others, corrected))
    return Measured(value=value, low=low, high=high, noise_floor=null)


def share(hits: Tensor, trials: Tensor) -> Measured:
    """A share with its interval, where there are as many units as one needs.

    Args:
        hits, trials: of each unit (a text, or a group of texts that are alike), [M].
    """
    total, count = float(hits.sum()), float(trials.sum())
    value = total / count
    if int((trials > 0).sum()) < MIN_GROUPS:
        return Measured(value=value)
    many = effective(torch.stack([hits, hits], 1), trials)
    low, high = share_interval(value * many, many)
    return Measured(value=value, low=low, high=high)


def change(gains: Tensor, losses: Tensor, pairs: Tensor) -> Measured:
    """A difference of two shares on the same trials with its interval, like `share`; [M] each."""
    count = float(pairs.sum())
    more, less = float(gains.sum()) / count, float(losses.sum()) / count
    if int((pairs > 0).sum()) < MIN_GROUPS:
        return Measured(value=more - less)
    many = effective(torch.stack([gains - losses, gains + losses], 1), pairs)
    low, high = change_interval(more * many, less * many, many)
    return Measured(value=more - less, low=low, high=high)


def shared_change(products: Tensor) -> Measured:
    """The share of the squared change that K fine-tunes make alike: mean of d_i · d_j over mean of d_i · d_i, -1 to 1.

    The interval adds two variances: of the jackknife over groups of texts, and of that over seeds; degrees of freedom
    after Welch and Satterthwaite. With two seeds it is over texts alone.

    Args:
        products: sums over the tokens of each group of d_i · d_j, [G, K, K].
    """

    def shared(together: Tensor) -> float | None:
        own = together.diagonal()
        pairs = float(together.sum() - own.sum()) / (len(own) * (len(own) - 1))
        scale = float(own.mean())
        return pairs / scale if scale > 0 else None

    groups, seeds = products.shape[:2]
    total = products.sum(0)
    value = shared(total)
    if value is None:
        return Measured(value=None, undefined="no seed changed anything here")
    texts = [one for group in products if (one := shared(total - group)) is not None]
    if groups < MIN_GROUPS or len(texts) < groups:
        return Measured(value=value)
    variances = [(jackknife_variance(texts), groups - 1)]
    if seeds > 2:
        others = [[other for other in range(seeds) if other != seed] for seed in range(seeds)]
        of_seeds = [one for some in others if (one := shared(total[some][:, some])) is not None]
        variances.append((jackknife_variance(of_seeds), seeds - 1))
    variance = sum(one for one, _ in variances)
    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom_of_sum(variances))) * variance**0.5
    return Measured(value=value, low=max(-1.0, value - half), high=min(1.0, value + half))


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
