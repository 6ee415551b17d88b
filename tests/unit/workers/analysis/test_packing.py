"""Sums of a group of rows packed in a third of their room."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workers.analysis.packing import packed, unpacked

SITES, WIDTH = 2, 5


def sums(noise: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Of outer products of rows x and of rows y that differ from them by some noise; [S, D, D] float64 each."""
    generator = torch.Generator().manual_seed(seed)
    x, difference = torch.randn(2, SITES, 40, WIDTH, dtype=torch.float64, generator=generator)
    y = x + noise * difference
    return x.mT @ x, y.mT @ y, x.mT @ y


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1.0, 100.0])
def test_what_is_unpacked_is_what_was_packed_to_the_rounding_of_float32(noise: float) -> None:
    given = sums(noise)
    xx, yy, xy = unpacked(packed(*given))
    for found, expected in zip((xx, yy, xy), (given[0].triu(), given[1].triu(), given[2]), strict=True):
        assert found.dtype is torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5 * float(expected.abs().max()))


def test_what_two_nearly_equal_models_differ_by_is_rounded_as_a_small_number() -> None:
    """Rounded to float32 by itself, a sum of 40 would be off by 2e-6, as much as the models differ by here."""
    xx, yy, xy = sums(1e-7)
    found = unpacked(packed(xx, yy, xy))
    torch.testing.assert_close(found[1] - found[0], (yy - xx).triu(), rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(found[2].triu() - found[0], (xy - xx).triu(), rtol=1e-5, atol=1e-12)


def test_equal_models_stay_exactly_equal() -> None:
    xx, yy, xy = unpacked(packed(*sums(0.0)))
    assert torch.equal(xx, yy)
    assert torch.equal(xy.triu(), xx)


def test_what_lies_below_the_diagonals_of_the_symmetric_sums_is_not_read() -> None:
    xx, yy, xy = sums(0.5)
    below = torch.full_like(xx, torch.nan).tril(-1)
    whole = packed(xx, yy, xy)
    for one, other in zip(packed(xx.triu() + below, yy.triu() + below, xy), whole, strict=True):
        assert torch.equal(one, other)


def test_packed_sums_take_a_third_of_the_room() -> None:
    given = [torch.zeros(1, 64, 64, dtype=torch.float64) for _ in range(3)]
    assert sum(one.nbytes for one in packed(*given)) < 0.35 * sum(one.nbytes for one in given)


def test_a_model_of_one_feature_has_sums_without_anything_below_the_diagonal() -> None:
    xx, yy, xy = unpacked(packed(*(torch.full((1, 1, 1), value, dtype=torch.float64) for value in (2.0, 3.0, 5.0))))
    assert (xx.item(), yy.item(), xy.item()) == (2.0, 3.0, 5.0)
