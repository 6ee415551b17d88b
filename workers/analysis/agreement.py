"""How far answers go with labels, whatever the shares of the classes: Matthews' correlation, and what chance gives.

Sources: Gorodkin (2004) for more than two classes. Pure mathematics on class numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.stats import norm
from torch import Tensor

from workers.analysis.permutation import permuted

RARE = 0.025
"""Answers that do not depend on the labels reach the bound in at most so many cases of one."""

PERMUTATIONS, PERMUTATIONS_AT_ONCE, ROUNDING = 1999, 100, 1e-12


class Agreement(NamedTuple):
    """mcc: -1 to 1; 0 for answers that are always the same. by_chance: what few unrelated answers reach."""

    mcc: float
    by_chance: float


def agreement(labels: Tensor, answers: Tensor, units: Tensor) -> Agreement:
    """Matthews' correlation of labels and answers, with its bound by chance.

    The bound is the least that at most RARE of 1,999 permutations of the labels reach. Answers that are always the same
    do not change with the labels: theirs is the limit for many texts, 1.96 / sqrt(n - 1).

    Args:
        labels, answers: class numbers, 0 or more, [N]. units: of texts that are nearly the same, [N].

    Raises:
        ValueError: fewer than two texts, or all of one label: there is nothing to go with.
    """
    total = len(labels)
    if total < 2 or len(labels.unique()) < 2:
        raise ValueError("agreement needs at least two texts and two labels")
    if len(answers.unique()) < 2:
        return Agreement(0.0, float(norm.ppf(1 - RARE)) / (total - 1) ** 0.5)
    generator = torch.Generator().manual_seed(0)
    correlations = []
    for start in range(0, PERMUTATIONS, PERMUTATIONS_AT_ONCE):
        permutations = min(PERMUTATIONS_AT_ONCE, PERMUTATIONS - start)
        correlations.append(_correlations(permuted(labels, units, permutations, generator), answers))
    by_chance = torch.cat(correlations).sort().values
    reached = float(by_chance[-int(RARE * PERMUTATIONS) - 1])  # by one permutation too many
    above = by_chance[by_chance > reached + ROUNDING]
    bound = float(above[0]) if len(above) else reached + ROUNDING
    return Agreement(float(_correlations(labels[None], answers)[0]), bound)


def _correlations(labels: Tensor, answers: Tensor) -> Tensor:
    """Of several labellings [P, N] and the same answers [N]; [P] float64."""
    total, classes = len(answers), int(max(labels.max(), answers.max())) + 1
    of_answers = answers.bincount(minlength=classes).double()
    counts = torch.zeros(len(labels), classes, dtype=torch.float64)
    counts.scatter_add_(1, labels, torch.ones_like(labels, dtype=torch.float64))
    hits = (labels == answers).sum(1).double()
    spreads = (total**2 - counts.square().sum(1)) * (total**2 - of_answers.square().sum())
    together = total * hits - counts @ of_answers
    return together / spreads.clamp_min(ROUNDING).sqrt()
