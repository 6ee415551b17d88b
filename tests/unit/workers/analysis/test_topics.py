"""Topics: tokens that gain together are told together."""

from __future__ import annotations

import pytest
import torch

from workers.analysis.topics import LEAST_SHARE, topics


def gains(seed: int = 0) -> torch.Tensor:
    """Two groups of positions: tokens 0 to 2 gain at one, tokens 3 and 4 at the other, 5 now and then."""
    generator = torch.Generator().manual_seed(seed)
    found = 0.05 * torch.rand(300, 6, generator=generator)
    found[:150, :3] += torch.tensor([3.0, 2.0, 1.0]) * (0.5 + torch.rand(150, 1, generator=generator))
    found[150:, 3:5] += torch.tensor([2.0, 1.0]) * (0.5 + torch.rand(150, 1, generator=generator))
    return found


def test_tokens_that_gain_at_the_same_positions_make_a_topic() -> None:
    first, second = topics(gains())
    assert first.weights.argsort(descending=True)[:3].tolist() == [0, 1, 2]
    assert float(first.weights[:3].sum()) > 0.97
    assert second.weights.argsort(descending=True)[:2].tolist() == [3, 4]
    assert float(second.weights[3:5].sum()) > 0.97
    assert first.share > second.share > LEAST_SHARE
    assert first.share + second.share == pytest.approx(1.0, abs=0.02)
    assert first.weights[:3].tolist() == pytest.approx([0.5, 1 / 3, 1 / 6], abs=0.02)


def test_the_factors_fit_as_well_as_multiplicative_updates_do() -> None:
    """The textbook's updates, run long, as the judge: what is left without both topics."""
    data = gains(1).double()
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.1 for shape in ((300, 3), (3, 6)))
    for _ in range(3000):
        right *= (left.T @ data) / (left.T @ left @ right).clamp_min(1e-12)
        left *= (data @ right.T) / (left @ right @ right.T).clamp_min(1e-12)
    lost = float((data - left @ right).square().sum() / data.square().sum())
    assert sum(one.share for one in topics(data)) >= 1 - lost - 0.01


def test_nothing_has_no_topics_and_one_token_is_one() -> None:
    assert topics(torch.zeros(5, 3)) == []
    assert topics(torch.zeros(0, 3)) == []
    (only,) = topics(torch.ones(5, 1))
    assert only.share == pytest.approx(1.0)
    assert only.weights.tolist() == [1.0]


def test_the_same_gains_have_the_same_topics() -> None:
    one, other = topics(gains()), topics(gains())
    assert all(torch.equal(a.weights, b.weights) for a, b in zip(one, other, strict=True))
