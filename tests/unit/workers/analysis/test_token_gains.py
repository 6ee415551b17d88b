"""Tokens that gained and lost, against sums that are written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from workers.analysis.token_gains import PLAUSIBLE, TokenGains, beyond

VOCABULARY, POSITIONS, GROUPS = 40, 60, 4


def log_probs(seed: int, sharpness: float = 3.0) -> Tensor:
    logits = sharpness * torch.randn(POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(-1)


def gains(before: Tensor, after: Tensor, groups: Tensor | None = None) -> TokenGains:
    groups = torch.arange(len(before)) % GROUPS if groups is None else groups
    found = TokenGains.none(GROUPS, before.shape[1])
    for start in range(0, len(before), 7):
        found.add(before[start : start + 7], after[start : start + 7], groups[start : start + 7])
    return found


def test_means_rates_and_bounds_are_those_of_sums_that_are_written_out() -> None:
    before, after = log_probs(1), log_probs(2)
    found = gains(before, after)
    expected, counted = torch.zeros(2, 2, VOCABULARY)
    by_group = torch.zeros(2, GROUPS, VOCABULARY)
    for position in range(POSITIONS):
        for token in range(VOCABULARY):
            moved = float(after[position, token] - before[position, token])
            for sign, (change, model) in enumerate(((moved, after), (-moved, before))):
                if change > 0 and math.exp(float(model[position, token])) >= PLAUSIBLE:
                    expected[sign, token] += change / POSITIONS
                    counted[sign, token] += 1 / POSITIONS
                    by_group[sign, position % GROUPS, token] += change
    torch.testing.assert_close(found.mean(), expected)
    torch.testing.assert_close(found.rate(), counted)
    without = (by_group.sum(1, keepdim=True) - by_group) / (POSITIONS - POSITIONS / GROUPS)
    spread = ((without - without.mean(1, keepdim=True)) ** 2).sum(1) * (GROUPS - 1) / GROUPS
    torch.testing.assert_close(found.low(), expected - 1.96 * spread.sqrt(), atol=1e-5, rtol=1e-4)


def test_equal_models_and_models_without_a_null_give_what_they_should() -> None:
    same = gains(log_probs(1), log_probs(1))
    for sign in (0, 1):
        found = beyond(same, [same, same], sign, set(), 2)
        assert (found.tokens, found.floor, found.largest) == ([], 0.0, 0.0)


def taught(tokens: list[int], by: float, seed: int = 1) -> Tensor:
    logits = log_probs(seed).clone()
    logits[:, tokens] += by
    return logits.log_softmax(-1)


def test_what_was_taught_stands_out_of_random_changes_and_the_most_comes_first() -> None:
    before = log_probs(1)
    after = taught([3], 3.0)
    after[:, 7] += 1.0
    noise = 0.1 * torch.randn(2, POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(5))
    random = [gains(before, (before + one).log_softmax(-1)) for one in noise]
    found = beyond(gains(before, after.log_softmax(-1)), random, 0, set(), 2)
    assert found.tokens == [3, 7]
    assert found.largest > found.floor > 0
    assert beyond(gains(before, after.log_softmax(-1)), random, 0, {3}, 2).tokens == [7]
    lost = beyond(gains(after.log_softmax(-1), before), random, 1, set(), 2)
    assert lost.tokens[:2] == [3, 7]


def test_a_token_that_no_model_would_say_is_none_that_was_learned() -> None:
    before = torch.full((POSITIONS, VOCABULARY), -20.0)
    before[:, 0] = 0.0
    after = before.clone()
    after[:, 5] += 8.0  # a great rise to a probability of 6e-6
    found = gains(before.log_softmax(-1), after.log_softmax(-1))
    assert float(found.mean()[0].max()) == pytest.approx(0.0, abs=1e-6)


def test_what_one_group_of_texts_alone_shows_is_no_habit() -> None:
    before, after = log_probs(1), log_probs(1).clone()
    after[::GROUPS, 3] += 6.0  # positions of group 0
    found = beyond(gains(before, after.log_softmax(-1)), [gains(before, before)], 0, set(), 2)
    assert 3 not in found.tokens
    alone = gains(before[:10], after[:10].log_softmax(-1), torch.zeros(10, dtype=torch.int64))
    assert beyond(alone, [], 0, set(), 2).tokens == []
