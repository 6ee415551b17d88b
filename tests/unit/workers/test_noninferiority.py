from __future__ import annotations

import pytest
import torch

from workers.analysis.noninferiority import loss_bound


def test_equal_answers_lose_nothing_for_certain() -> None:
    hits = torch.ones(2, 50)
    assert loss_bound(hits, hits.clone()) == (0.0, 0.0)


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
