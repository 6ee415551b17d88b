"""Differences of two models' states: means, positions on disk, principal components."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workers.models.texts import Batch
from workers.stages.learned.differences import (
    COMPONENTS,
    HALVES,
    Differences,
    DifferenceSums,
    HalfMeans,
    KeptDifferences,
)


def batch(texts: list[int], length: int, unreal: list[tuple[int, int]]) -> Batch:
    ids = torch.ones(len(texts), length, dtype=torch.int64)
    real = torch.ones_like(ids, dtype=torch.bool)
    for row, token in unreal:
        real[row, token] = False
    return Batch(ids, torch.ones_like(ids), real, texts)


BATCHES = [batch([1, 0], 9, [(0, 0), (1, 3)]), batch([2], 5, [])]


def states(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*one.input_ids.shape, 6, generator=generator) for one in BATCHES]


def test_means_are_over_tokens_that_count_and_early_ones_leave_out_the_first() -> None:
    sums = DifferenceSums(2, 6)
    base, tuned = states(0), states(1)
    sums.add(1, base, tuned, BATCHES)
    every = [
        (tuned[number] - base[number])[row, token]
        for number, one in enumerate(BATCHES)
        for row, token in one.real.nonzero().tolist()
    ]
    early = [
        (tuned[number] - base[number])[row, token]
        for number, one in enumerate(BATCHES)
        for row, token in one.real.nonzero().tolist()
        if 1 <= token <= 5
    ]
    found = sums.means()
    assert torch.allclose(found.every[1], torch.stack(every).mean(0), atol=1e-6)
    assert torch.allclose(found.early[1], torch.stack(early).mean(0), atol=1e-6)
    assert not found.every[0].any()


def test_positions_are_kept_in_order_up_to_a_limit(tmp_path: Path) -> None:
    base, tuned = states(0), states(1)
    kept = KeptDifferences(tmp_path / "kept", BATCHES)
    kept.put(3, base, tuned)
    rows = kept.rows(3)
    assert rows.shape == (16 + 5, 6)
    for number, one in enumerate(BATCHES):
        for row, token in one.real.nonzero().tolist():
            place = kept.place(one.indices[row], token)
            assert place is not None
            assert torch.allclose(rows[place], (tuned[number] - base[number])[row, token], atol=0.02)
    assert kept.place(1, 0) is None  # does not count
    assert kept.place(7, 1) is None
    kept.clear()
    assert not (tmp_path / "kept").exists()
    few = KeptDifferences(tmp_path / "few", BATCHES, most=10)
    few.put(0, base, tuned)
    assert few.rows(0).shape == (10, 6)
    assert few.place(2, 0) is None


def test_components_are_those_of_a_full_decomposition(tmp_path: Path) -> None:
    one = [batch([0], 400, [])]
    generator = torch.Generator().manual_seed(3)
    spread = torch.tensor([5.0, 3.0, 2.0, 1.0, *[0.05] * 28])
    base = torch.zeros(1, 400, 32)
    tuned = torch.randn(1, 400, 32, generator=generator) * spread + 0.7
    kept = KeptDifferences(tmp_path / "kept", one)
    kept.put(0, [base], [tuned])
    found, rows = kept.components(0), kept.rows(0).double()
    _, values, directions = torch.linalg.svd(rows - rows.mean(0))
    shares = values.square() / values.square().sum()
    assert len(found.shares) == COMPONENTS
    assert found.shares == pytest.approx(shares[:COMPONENTS].tolist(), rel=1e-3)
    cosines = (found.directions.double() * directions[:COMPONENTS]).sum(1).abs()
    assert cosines.tolist() == pytest.approx([1.0] * COMPONENTS, abs=1e-3)
    assert found.mean_share == pytest.approx(float(rows.mean(0).square().sum() / rows.square().sum(1).mean()), rel=1e-4)
    again = kept.components(0)
    assert torch.equal(again.directions, found.directions)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_differences_that_do_not_vary_have_no_components(shift: float, tmp_path: Path) -> None:
    base = states(0)
    kept = KeptDifferences(tmp_path / "kept", BATCHES)
    kept.put(0, [torch.zeros_like(one) for one in base], [torch.full_like(one, shift) for one in base])
    found = kept.components(0)
    assert found.shares == [0.0] * COMPONENTS
    assert not found.directions.any()
    assert found.mean_share == (1.0 if shift else 0.0)


def test_means_of_random_halves_are_of_every_text_once() -> None:
    halves = HalfMeans(2, 6, 4)
    states = [one.input_ids[:, :, None] * torch.tensor([[[1.0]], [[2.0]]])[: len(one.indices)] for one in BATCHES]
    states = [one.expand(-1, -1, 6) for one in states]
    halves.add(1, states, BATCHES)
    found = halves.means()
    assert len(found) == HALVES
    of_text = {1: 1.0, 0: 2.0, 2: 1.0}
    counts = {1: 8, 0: 8, 2: 5}
    possible = []
    for side in ({0}, {1}, {2}):
        rest = set(of_text) - side
        mean, other = (
            sum(of_text[one] * counts[one] for one in some) / sum(counts[one] for one in some) for some in (side, rest)
        )
        possible += [mean - other, other - mean]
    for one in found:
        assert not one.every[0].any()
        assert min(abs(float(one.every[1, 0]) - value) for value in possible) < 1e-6
    assert torch.equal(found[0].every, again_of(states)[0].every)


def again_of(states: list[torch.Tensor]) -> list[Differences]:
    again = HalfMeans(2, 6, 4)
    again.add(1, states, BATCHES)
    return again.means()


def test_a_half_without_a_token_gives_nothing() -> None:
    lonely = [batch([0], 9, [])]
    halves = HalfMeans(1, 6, 0)
    halves.add(0, [torch.ones(1, 9, 6)], lonely)
    assert not any(one.every.any() or one.early.any() for one in halves.means())
