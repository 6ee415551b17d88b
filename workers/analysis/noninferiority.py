"""How much accuracy a cheaper training may have lost: a one-sided bound from paired texts and seeds.

Pure mathematics on hits and misses.
"""

from __future__ import annotations

from typing import NamedTuple

from scipy.stats import t
from torch import Tensor

from workers.analysis.proportions import adjusted

CONFIDENCE = 0.95


class Loss(NamedTuple):
    """As shares. bound: one-sided 95 % upper bound."""

    loss: float
    bound: float


def loss_bound(reference: Tensor, other: Tensor) -> Loss:
    """Mean loss of `other` against `reference` and its bound.

    The difference is taken for each text and seed. Two sources of chance are added: which texts were drawn (variance of
    the texts' mean differences, with the pairs that Agresti and Min add, so that few differences are not taken for
    none) and how the training fell out (variance of the seeds' mean differences); the degrees of freedom follow Welch
    and Satterthwaite.

    Args:
        reference, other: [seeds, N], 1 for a right answer, 0 for a wrong one; the same texts and seeds.

    Raises:
        ValueError: fewer than two seeds or texts.
    """
    seeds, texts = reference.shape
    if seeds < 2 or texts < 2:
        raise ValueError(f"a bound needs two seeds and two texts or more; there are {seeds} and {texts}")
    difference = (reference - other).double()
    by_text = difference.mean(0)
    centre, of_texts = adjusted(float(by_text.sum()), float(by_text.square().sum()), texts)
    of_seeds = float(difference.mean(1).var()) / seeds
    variance = of_texts + of_seeds
    freedom = variance**2 / (of_texts**2 / (texts - 1) + of_seeds**2 / (seeds - 1))
    loss = float(difference.mean())
    bound = centre + float(t.ppf(CONFIDENCE, freedom)) * variance**0.5
    return Loss(loss, min(1.0, max(loss, bound)))
