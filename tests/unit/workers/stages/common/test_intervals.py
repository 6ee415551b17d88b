from __future__ import annotations

import math

import pytest
import torch

from workers.stages.common.intervals import MIN_GROUPS, change, measured, ratio, share, shared_change


def test_an_undefined_number_says_why_and_has_no_interval() -> None:
    found = measured(None, [0.1] * 20, "the states never vary")
    assert (found.value, found.low, found.high, found.undefined) == (None, None, None, "the states never vary")


@pytest.mark.parametrize("left_out", [[], [0.5] * (MIN_GROUPS - 1), [0.5] * 10 + [None]])
def test_too_few_groups_give_a_number_without_an_interval(left_out: list[float | None]) -> None:
    found = measured(0.5, left_out, null=0.01)
    assert (found.value, found.low, found.high, found.noise_floor) == (0.5, None, None, 0.01)


def test_an_interval_ends_where_the_number_can_go_no_further() -> None:
    left_out = [0.98, 0.9, 1.0, 0.97, 0.99, 0.93]
    free, bounded = measured(0.99, left_out), measured(0.99, left_out, bounds=(0.0, 1.0))
    assert free.high is not None
    assert free.high > 1.0
    assert (bounded.low, bounded.high) == (free.low, 1.0)


def test_a_share_without_a_miss_has_an_interval_of_some_width() -> None:
    ones = torch.ones(50, dtype=torch.float64)
    found = share(ones, ones)
    assert found.value == 1.0
    assert found.low is not None
    assert 0.9 < found.low < 1.0
    assert found.high == pytest.approx(1.0)


def test_a_change_in_no_answer_may_still_hide_a_small_one() -> None:
    none, pairs = torch.zeros(50, dtype=torch.float64), torch.ones(50, dtype=torch.float64)
    found = change(none, none, pairs)
    assert found.value == 0.0
    assert found.low is not None
    assert found.high is not None
    assert found.low == pytest.approx(-found.high)
    assert 0 < found.high < 0.1


def test_a_ratio_leaves_out_groups_without_examples() -> None:
    sums = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 9.0], dtype=torch.float64)
    counts = torch.tensor([2.0, 2.0, 2.0, 2.0, 2.0, 0.0], dtype=torch.float64)
    with_empty = ratio(sums * (counts > 0), counts, math.exp)
    without = ratio(sums[:5], counts[:5], math.exp)
    assert with_empty == without
    assert with_empty.value == pytest.approx(math.exp(1.5))


@pytest.mark.parametrize(("alike", "expected"), [(True, 1.0), (False, 0.0)])
def test_seeds_that_move_tokens_alike_share_all_of_the_change_and_others_none(alike: bool, expected: float) -> None:
    together = torch.ones(3, 3) if alike else torch.eye(3)
    products = together.double().expand(20, 3, 3) * torch.linspace(1, 2, 20, dtype=torch.float64)[:, None, None]
    assert shared_change(products).value == pytest.approx(expected)


def test_seeds_that_change_nothing_share_nothing_that_could_be_told() -> None:
    found = shared_change(torch.zeros(20, 3, 3, dtype=torch.float64))
    assert found.value is None
    assert found.undefined == "no seed changed anything here"
