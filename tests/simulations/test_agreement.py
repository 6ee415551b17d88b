"""Matthews' correlation of answers and labels, and what chance gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workers.analysis.agreement import agreement
from workers.analysis.permutation import permuted


def drawn(shares: list[float], texts: int, seed: int) -> Tensor:
    return torch.multinomial(torch.tensor(shares), texts, True, generator=torch.Generator().manual_seed(seed))


def test_of_two_classes_it_is_the_correlation_of_zeros_and_ones() -> None:
    labels, answers = drawn([0.7, 0.3], 300, 0), drawn([0.6, 0.4], 300, 1)
    answers = torch.where(torch.arange(300) % 3 == 0, labels, answers)
    expected = float(torch.corrcoef(torch.stack([labels, answers]).double())[0, 1])
    assert agreement(labels, answers, torch.arange(300)).mcc == pytest.approx(expected)


def test_a_constant_has_none_and_does_not_reach_chance_and_rare_labels_that_are_found_do() -> None:
    labels = (torch.arange(200) % 20 == 0).long()
    constant = agreement(labels, torch.zeros(200, dtype=torch.int64), torch.arange(200))
    assert constant.mcc == 0.0 < constant.by_chance
    found = labels.clone()
    found[[0, 20, 40, 60]], found[[1, 2]] = 0, 1
    good = agreement(labels, found, torch.arange(200))
    assert good.mcc > good.by_chance


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.95, 0.05], [0.4, 0.3, 0.3]])
def test_unrelated_answers_seldom_reach_what_chance_gives(shares: list[float]) -> None:
    reached = 0
    for seed in range(200):
        found = agreement(drawn(shares, 200, seed), drawn(shares, 200, 1000 + seed), torch.arange(200))
        reached += found.mcc >= found.by_chance
    assert reached <= 11


def test_texts_that_are_nearly_the_same_prove_no_more_than_one() -> None:
    labels, answers = drawn([0.5, 0.5], 40, 0), drawn([0.5, 0.5], 40, 1)
    one = agreement(labels, answers, torch.arange(40))
    units = torch.arange(40).repeat_interleave(10)
    many = agreement(labels.repeat_interleave(10), answers.repeat_interleave(10), units)
    assert many.mcc == pytest.approx(one.mcc)
    assert many.by_chance == pytest.approx(one.by_chance, rel=0.2)
    alone = agreement(labels.repeat_interleave(10), answers.repeat_interleave(10), torch.arange(400))
    assert alone.by_chance < 0.5 * many.by_chance


def test_ten_thousand_classes_are_no_matter_of_memory() -> None:
    labels = torch.arange(2000) * 5
    found = agreement(labels, labels.roll(1), torch.arange(2000))
    assert found.mcc == pytest.approx(0.0, abs=1e-3)


def test_whole_units_exchange_their_classes_where_each_has_one() -> None:
    units = torch.tensor([0, 0, 1, 1, 2, 2])
    generator = torch.Generator().manual_seed(0)
    dealt = permuted(torch.tensor([0, 0, 1, 1, 2, 2]), units, 50, generator)
    assert torch.equal(dealt[:, ::2], dealt[:, 1::2])
    mixed = permuted(torch.tensor([0, 1, 0, 1, 0, 1]), units, 50, generator)
    assert mixed.sum(1).unique().tolist() == [3]
    assert not torch.equal(mixed[:, ::2], mixed[:, 1::2])
