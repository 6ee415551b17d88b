from __future__ import annotations

import pytest
import torch

from workers.analysis import weights
from workers.analysis.weights import effective_rank, rounding_square_sum, weight_difference


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def squared_singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """The plain way, as the judge of the other."""
    found: torch.Tensor = torch.linalg.svdvals(matrix).square()
    return found


@pytest.mark.parametrize("shape", [(50, 90), (90, 50), (60, 60)])
def test_the_gram_way_in_parts_gives_what_the_singular_values_give(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    base, update = draw(*shape), 0.1 * draw(*shape, seed=1)
    monkeypatch.setattr(weights, "PART_NUMBERS", 700)  # some rows at a time
    found = weight_difference([(base, base + update)])
    difference = (base + update).double() - base.double()
    assert found.relative_frobenius == pytest.approx(float(difference.norm() / base.double().norm()), rel=1e-12)
    assert found.effective_rank == pytest.approx(effective_rank(squared_singular_values(difference)), rel=1e-6)


def test_of_wide_half_precision_the_sums_are_short_and_the_rank_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base = (0.05 * draw(500, 600)).bfloat16()
    tuned = (base.float() + 3e-4 * draw(500, 8, seed=1) @ draw(8, 600, seed=2) / 8**0.5).bfloat16()
    exact = weight_difference([(base, tuned)])
    monkeypatch.setattr(weights, "EXACT_SIDE", 100)
    short = weight_difference([(base, tuned)])
    assert short.effective_rank == pytest.approx(exact.effective_rank, rel=1e-4)
    assert short.top_share == pytest.approx(exact.top_share, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 4, 8, 12])
def test_a_low_rank_update_is_seen_as_one(rank: int) -> None:
    base = draw(40, 60)
    directions = torch.linalg.qr(draw(40, rank, seed=1)).Q @ torch.linalg.qr(draw(60, rank, seed=2)).Q.T
    found = weight_difference([(base, base + directions)])
    assert found.effective_rank == pytest.approx(rank, rel=1e-3)
    assert found.top_share is not None
    assert found.top_share[8] == pytest.approx(min(1.0, 8 / rank), rel=1e-4)
    assert found.top_share[16] == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("kept_in", [torch.float32, torch.bfloat16])
def test_the_rank_of_a_low_rank_update_is_seen_through_the_rounding_of_its_weights(kept_in: torch.dtype) -> None:
    """In bfloat16 the rounding alone has full rank: a LoRA of rank 8 read as of rank 400 before."""
    base = (0.05 * draw(500, 600)).bfloat16().float()
    update = draw(500, 8, seed=1) @ draw(8, 600, seed=2)
    tuned = (base + 3e-4 * update / 8**0.5).to(kept_in).float()
    found = weight_difference([(base, tuned)])
    assert found.effective_rank == pytest.approx(8, abs=0.5)
    assert found.top_share is not None
    assert found.top_share[8] == pytest.approx(1.0, abs=0.01)
    whole = effective_rank(squared_singular_values((tuned - base).double()))
    assert found.rounding_share is not None
    assert (whole > 100) is (kept_in == torch.bfloat16)
    assert (found.rounding_share > 1e-4) is (kept_in == torch.bfloat16)


def test_a_difference_that_is_all_rounding_has_no_rank() -> None:
    base = draw(200, 300)
    found = weight_difference([(base, base.bfloat16().float())])
    assert found.effective_rank is None
    assert found.rounding_share == pytest.approx(1.0, abs=0.05)


def test_the_relative_norm_is_over_all_tensors_of_the_group() -> None:
    base = [draw(4, 4), draw(7, seed=1)]
    tuned = [base[0] + 1, base[1]]
    norm = sum(float(tensor.square().sum()) for tensor in base) ** 0.5
    assert weight_difference(zip(base, tuned, strict=True)).relative_frobenius == pytest.approx(4 / norm, rel=1e-6)


def test_weights_that_did_not_move_have_no_rank() -> None:
    base = draw(4, 4)
    found = weight_difference([(base, base.clone())])
    assert (found.relative_frobenius, found.effective_rank, found.top_share) == (0.0, None, None)


def test_vectors_have_a_norm_but_no_rank() -> None:
    found = weight_difference([(torch.ones(9), torch.ones(9) * 1.5)])
    assert found.relative_frobenius == pytest.approx(0.5)
    assert found.effective_rank is None


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="needs tensors"):
        weight_difference([])


def test_what_was_zero_has_no_relative_norm_once_it_moves() -> None:
    zero = torch.zeros(4, 4)
    assert weight_difference([(zero, zero.clone())]).relative_frobenius == 0.0
    assert weight_difference([(zero, torch.eye(4))]).relative_frobenius is None


def test_the_effective_rank_of_an_even_spectrum_is_its_length() -> None:
    assert effective_rank(torch.ones(7)) == pytest.approx(7.0)
    assert effective_rank(torch.tensor([1.0, 0.0, 0.0])) == pytest.approx(1.0)


@pytest.mark.parametrize(("kind", "digits"), [(torch.bfloat16, 8), (torch.float16, 11), (torch.float32, 24)])
def test_the_rounding_of_weights_is_the_variance_of_their_spacing(kind: torch.dtype, digits: int) -> None:
    values = torch.cat([draw(500), 1e-3 * draw(500, seed=1), torch.tensor([0.0, -1.0, 2.0**-130])]).to(kind)
    spacing = torch.ldexp(torch.ones(len(values), dtype=torch.float64), torch.frexp(values.double()).exponent - digits)
    judge = torch.where(values == 0, 0.0, spacing.square() / 12).sum()
    assert rounding_square_sum(values, digits) == pytest.approx(float(judge), rel=1e-12)
