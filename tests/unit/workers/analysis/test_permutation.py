"""Permutation tests: p-values, false discoveries, and sets that are drawn to be like a chosen one."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.analysis.permutation import discoveries, first_of, matched_draws, p_value, permuted


@pytest.mark.parametrize(
    ("found", "by_chance", "expected"),
    [
        (2.0, [1.0, 2.0, 3.0], 3 / 4),
        (9.0, [1.0, 2.0, 3.0], 1 / 4),
        (0.0, [1.0, 2.0, 3.0], 1.0),
        (1.0, [], 1.0),
        (1.0, [math.nan, 0.0], 1 / 3),
    ],
    ids=["a tie counts for chance", "never 0", "never above 1", "no draws", "a draw that is NaN proves nothing"],
)
def test_a_p_value_is_how_often_chance_gives_as_much(found: float, by_chance: list[float], expected: float) -> None:
    assert p_value(found, torch.tensor(by_chance)) == pytest.approx(expected)


def test_benjamini_and_hochbergs_own_example_has_four_discoveries() -> None:
    """The fifteen p-values of their paper of 1995, section 4."""
    p_values = [
        0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590,
        1.0,
    ]  # fmt: skip
    assert discoveries(p_values) == [True] * 4 + [False] * 11
    assert discoveries(p_values[::-1]) == [False] * 11 + [True] * 4


def test_a_value_above_its_own_line_is_told_where_a_larger_one_is_below_its() -> None:
    assert discoveries([0.04, 0.045], rate=0.05) == [True, True]
    assert discoveries([0.04, 0.06], rate=0.05) == [False, False]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_discoveries_are_the_smallest_p_values_by_the_definition(p_values: list[float]) -> None:
    count = len(p_values)
    ranks = [k for k in range(1, count + 1) if sorted(p_values)[k - 1] <= 0.05 * k / count]
    found = discoveries(p_values)
    assert sum(found) == max(ranks, default=0)
    told = [value for value, believed in zip(p_values, found, strict=True) if believed]
    others = [value for value, believed in zip(p_values, found, strict=True) if not believed]
    assert max(told, default=0) <= min(others, default=1)


def test_the_first_member_of_each_unit_is_found() -> None:
    assert first_of(torch.tensor([2, 0, 2, 1, 0])).tolist() == [1, 3, 0]


def test_units_of_one_class_exchange_theirs_whole() -> None:
    classes, units = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([7, 7, 3, 3, 3, 5])
    orders = permuted(classes, units, 300, torch.Generator().manual_seed(0))
    assert orders.shape == (300, 6)
    seen = {tuple(order) for order in orders.tolist()}
    assert seen == {(a, a, b, b, b, c) for a, b, c in permutations((0, 1, 2))}


def test_units_of_mixed_classes_are_dealt_out_one_by_one() -> None:
    classes, units = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
    orders = permuted(classes, units, 100, torch.Generator().manual_seed(0))
    assert {tuple(order) for order in orders.tolist()} == set(permutations((0, 1, 1)))


def test_drawn_sets_are_as_large_as_the_chosen_one_and_as_much_like_it() -> None:
    """Two far clusters: of each as many are drawn as were chosen there."""
    features = torch.cat([torch.rand(20, 2), 100 + torch.rand(20, 2)])
    chosen, others = torch.tensor([0, 1, 2, 20]), torch.tensor([*range(3, 20), *range(21, 40)])
    found = matched_draws(chosen, others, features, 50, 5, torch.Generator().manual_seed(0))
    assert len(found) == 50
    for drawn in found:
        assert len(set(drawn)) == 4
        assert drawn == sorted(drawn)
        assert sum(place < 20 for place in drawn) == 3
    assert {place for drawn in found for place in drawn} >= {0, 1, 2, 20}  # chosen ones may be drawn again


def test_features_that_are_all_the_same_tell_nothing_apart() -> None:
    found = matched_draws(
        torch.tensor([0]), torch.arange(1, 8), torch.zeros(8, 2), 200, 8, torch.Generator().manual_seed(0)
    )
    assert {drawn[0] for drawn in found} == set(range(8))


@pytest.mark.parametrize(("chosen", "others"), [(0, 5), (3, 2)])
def test_nothing_is_drawn_for_nothing_or_with_too_few_others(chosen: int, others: int) -> None:
    every = torch.arange(chosen + others)
    features = torch.rand(len(every), 2)
    assert matched_draws(every[:chosen], every[chosen:], features, 10, 2, torch.Generator()) == []
