"""McNemar's exact test beside the binomial sum that defines it."""

from __future__ import annotations

from math import comb

import pytest

from workers.analysis.mcnemar import mcnemar_p


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 5), (1, 9), (9, 1), (0, 6), (3, 17)])
def test_it_is_twice_the_smaller_tail(gained: int, lost: int) -> None:
    many, few = gained + lost, min(gained, lost)
    tail = sum(comb(many, number) for number in range(few + 1)) / 2**many
    assert mcnemar_p(gained, lost) == pytest.approx(min(1.0, 2 * tail))
