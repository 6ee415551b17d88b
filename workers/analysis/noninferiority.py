"""How much accuracy a cheaper training may have lost: a one-sided bound from paired texts and seeds.

Pure mathematics on hits and misses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.stats import t
from torch import Tensor

from workers.analysis.jackknife import freedom_of_sum
from workers.analysis.proportions import adjusted, effective

CONFIDENCE = 0.95


class Loss(NamedTuple):
    """As shares. bound: one-sided 95 % upper bound."""

    loss: float
    bound: float


def loss_bound(reference: Tensor, other: Tensor, units: Tensor | None = None) -> Loss:
    """Mean loss of `other` against `reference` and its bound.

    The difference is taken for each text and seed. Two sources of chance are added: which texts were drawn (variance of
    the texts' mean differences, with the pairs that Agresti and Min add, so that few differences are not taken for
    none) and how the training fell out (variance of the seeds' mean differences); the degrees of freedom follow Welch
    and Satterthwaite.

    Args:
        reference, other: [seeds, N], 1 for a right answer, 0 for a wrong one; the same texts and seeds.
        units: [N], numbers from 0 of units of texts that are nearly the same; None: every text is one. Of a single
            unit nothing is known of others: the bound is then 1.

    Raises:
        ValueError: fewer than two seeds or texts.
    """
    seeds, texts = reference.shape
    if seeds < 2 or texts < 2:
        raise ValueError(f"a bound needs at least two seeds and two texts; there are {seeds} and {texts}")
    difference = (reference - other).double()
    by_text = difference.mean(0)
    units = torch.arange(texts) if units is None else units
    if not int(units.max()):
        return Loss(float(difference.mean()), 1.0)
    values = torch.stack([by_text, by_text.square()], 1)
    zeros = torch.zeros(int(units.max()) + 1, 2, dtype=torch.float64)
    many = effective(zeros.index_add(0, units, values), units.bincount(minlength=len(zeros)).double())
    mean, square = (many * float(one) for one in values.mean(0))
    centre, of_texts = adjusted(mean, square, many)
    of_seeds = float(difference.mean(1).var()) / seeds
    variance = of_texts + of_seeds
    freedom = freedom_of_sum([(of_texts, max(1.0, many - 1)), (of_seeds, seeds - 1)])
    loss = float(difference.mean())
    bound = centre + float(t.ppf(CONFIDENCE, freedom)) * variance**0.5
    return Loss(loss, min(1.0, max(loss, bound)))
