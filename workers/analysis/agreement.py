"""How far answers go with labels, whatever the shares of the classes: Matthews' correlation, and what chance gives.

Sources: Gorodkin (2004) for more than two classes. Pure mathematics on a table of counts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, random_table
from torch import Tensor

RARE = 0.025
"""Answers that do not depend on the labels reach the bound in at most so many cases of one."""

TABLES, ROUNDING = 1999, 1e-12


class Agreement(NamedTuple):
    """mcc: -1 to 1; 0 for answers that are always the same. by_chance: what few unrelated answers reach."""

    mcc: float
    by_chance: float


def agreement(counts: Tensor) -> Agreement:
    """Matthews' correlation of a table of counts [C, C] of labels by answers, with its bound by chance.

    The bound is the least that at most RARE of 1,999 tables reach in which the labels are dealt out anew, drawn with
    the same sums of rows and columns (Patefield 1981). Answers that are always the same have no such tables: theirs
    is the limit for many texts, 1.96 / sqrt(n - 1).

    Raises:
        ValueError: fewer than two texts, or all of one label: there is nothing to go with.
    """
    table = counts.numpy().astype(int)
    total, labels, answers = int(table.sum()), table.sum(1), table.sum(0)
    if total < 2 or labels.max() == total:
        raise ValueError("agreement needs two texts or more, with two labels or more")
    if answers.max() == total:
        return Agreement(0.0, float(norm.ppf(1 - RARE)) / (total - 1) ** 0.5)
    drawn = random_table(labels, answers).rvs(TABLES, random_state=np.random.default_rng(0))
    by_chance = np.sort(_correlation(drawn, labels, answers))
    reached = by_chance[-int(RARE * len(by_chance)) - 1]  # by one table too many
    above = by_chance[by_chance > reached + ROUNDING]
    bound = float(above[0]) if len(above) else float(reached) + ROUNDING
    return Agreement(float(_correlation(table, labels, answers)), bound)


def _correlation(tables: NDArray[np.int64], labels: NDArray[np.int64], answers: NDArray[np.int64]) -> Any:
    """Of tables [..., C, C] with these sums; [...]."""
    total = labels.sum()
    hits = np.trace(tables, axis1=-2, axis2=-1)
    spreads = (total**2 - (labels**2).sum()) * float(total**2 - (answers**2).sum())
    return (total * hits - (labels * answers).sum()) / spreads**0.5
