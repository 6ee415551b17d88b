from __future__ import annotations

import pytest
import torch

from workers.analysis.noninferiority import loss_bound


@pytest.mark.parametrize(("texts", "points"), [(50, 3.3), (200, 0.9), (1_000, 0.2)])
def test_equal_answers_leave_room_for_a_loss_that_few_texts_would_not_show(texts: int, points: float) -> None:
    hits = torch.ones(2, texts)
    loss, bound = loss_bound(hits, hits.clone())
    assert loss == 0.0
    assert 100 * bound == pytest.approx(points, abs=0.15)


def test_a_loss_of_three_points_is_not_called_less_than_one_because_no_text_shows_it() -> None:
    """60 texts show no difference in 16 % of draws, which once bounded the loss at 0."""
    generator = torch.Generator().manual_seed(2)
    validated = 0
    for _ in range(1000):
        other = (torch.rand(60, generator=generator) >= 0.03).double().expand(2, 60)
        validated += loss_bound(torch.ones(2, 60), other).bound < 0.01
    assert validated / 1000 <= 0.05


def test_a_loss_on_every_text_is_bounded_by_itself() -> None:
    loss, bound = loss_bound(torch.ones(3, 40), torch.zeros(3, 40))
    assert (loss, bound) == (1.0, 1.0)


def test_the_bound_is_above_the_loss_and_falls_with_more_texts() -> None:
    generator = torch.Generator().manual_seed(0)

    def found(texts: int) -> tuple[float, float]:
        reference = (torch.rand(2, texts, generator=generator) < 0.8).double()
        return loss_bound(reference, (torch.rand(2, texts, generator=generator) < 0.8).double())

    few, many = found(100), found(20_000)
    assert few[0] < few[1]
    assert many[1] - many[0] < few[1] - few[0]


def test_the_bound_holds_as_often_as_it_says() -> None:
    """Texts and seeds both vary; of 1,000 sweeps at least 93 % of the 95 % bounds are above the true loss."""
    generator = torch.Generator().manual_seed(1)
    true_loss, held = 0.02, 0
    for _ in range(1000):
        skill = torch.randn(1, 400, generator=generator)
        of_seed = 0.05 * torch.randn(2, 2, 1, generator=generator)
        right = (skill + 0.5 * torch.randn(2, 2, 400, generator=generator) + of_seed) > -1
        dropped = torch.rand(2, 400, generator=generator) < true_loss
        reference, other = right[0].double(), (right[1] & ~dropped).double()
        expected = float(right[1].double().mean()) * true_loss
        held += loss_bound(reference, other).bound > expected
    assert held / 1000 > 0.93


@pytest.mark.parametrize("shape", [(1, 50), (2, 1)])
def test_one_seed_or_one_text_bounds_nothing(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="two seeds and two texts"):
        loss_bound(torch.ones(shape), torch.ones(shape))
