"""The floor of a method: above which a score is beyond those of models that learned nothing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

FLOOR_DEVIATIONS: Final = 2.0
"""Deviations that the floor lies above the largest score: the largest of as many draws exceeds another one every second
time.
"""


def floor_of(scores: Sequence[float]) -> float:
    """Of the scores of models that learned nothing; 0 is the score of what they do not have, and does not count."""
    known = [score for score in scores if score != 0]
    return max(known) + FLOOR_DEVIATIONS * statistics.pstdev(known) if known else 0.0


def floor_of_largest(largest: Sequence[float], alike: int) -> float:
    """Of the largest score of each model that learned nothing.

    Args:
        alike: how many of them, the first ones, were made in the same way: they tell by how much such a score varies.
    """
    if not largest or max(largest) <= 0:
        return 0.0
    return max(largest) + FLOOR_DEVIATIONS * statistics.pstdev(largest[:alike])
