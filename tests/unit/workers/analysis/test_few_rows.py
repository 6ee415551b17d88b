"""Rows in as few directions as they have: all that depends on their products stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workers.analysis.few_rows import few, rotated, standardised
from workers.analysis.moments import Frame
from workers.analysis.streams import Rows

WIDTH = 40


def rows(count: int, seed: int = 0) -> Rows:
    base, noise = torch.randn(2, 1, count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return Rows(base + 3, base + 0.2 * noise)


@pytest.mark.parametrize(("count", "expected"), [(10, True), (11, False)])
def test_rows_are_few_where_those_of_both_models_fill_no_more_than_half_of_the_directions(
    count: int, expected: bool
) -> None:
    assert few(count, WIDTH) is expected


def products(found: Rows) -> Tensor:
    both = torch.cat([found.base[0], found.tuned[0]]).double()
    return both @ both.T


def test_a_rotation_keeps_every_product_of_rows_within_and_across_the_models() -> None:
    given = rows(9)
    found = rotated(given)
    assert found.base.shape == found.tuned.shape == (1, 9, 18)
    torch.testing.assert_close(products(found), products(given), rtol=1e-12, atol=1e-10)


def test_identical_rows_stay_identical_to_the_last_bit() -> None:
    given = rows(9)
    found = rotated(Rows(given.base, given.base.clone()))
    assert torch.equal(found.base, found.tuned)


def test_more_rows_than_directions_are_refused() -> None:
    with pytest.raises(ValueError, match="21 rows of two models do not lie in less than 40 directions"):
        rotated(rows(21))


def test_standardised_features_have_no_mean_and_a_deviation_of_one_or_none() -> None:
    given = rows(9)
    given.base[..., 0] = 5.0  # does not vary
    found = standardised(given, Frame.of(*given))
    torch.testing.assert_close(found.base.mean(1), torch.zeros(1, WIDTH, dtype=torch.float64), atol=1e-6, rtol=0)
    deviations = found.base.var(1, correction=0).sqrt()[0]
    assert float(deviations[0]) == 0.0
    torch.testing.assert_close(deviations[1:], torch.ones(WIDTH - 1, dtype=torch.float64))
