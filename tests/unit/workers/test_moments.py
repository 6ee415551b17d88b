from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from workers.analysis.moments import Centre, NotFinite, PairMoments, row_cosines
from workers.analysis.similarity import similarities


def pair(rows: int = 300, width: int = 12, sites: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(sites, rows, width, generator=generator) + 4
    return base, 0.6 * base + torch.randn(sites, rows, width, generator=generator)


def gathered(base: Tensor, tuned: Tensor, centre: Centre, cuts: list[int]) -> PairMoments:
    moments = PairMoments.zeros(centre)
    for first, last in zip([0, *cuts], [*cuts, base.shape[1]], strict=True):
        moments.add(base[:, first:last], tuned[:, first:last])
    return moments


def test_identical_models_have_exactly_zero_drift() -> None:
    base, _ = pair()
    moments = gathered(base, base.clone(), Centre.of(base, base), [7, 150])
    for site in similarities(moments):
        assert (site.relative_l2, site.cka) == (0.0, 1.0)
        assert site.cosine == pytest.approx(1.0, abs=1e-12)


def test_shards_in_any_order_merge_to_what_one_pass_gives() -> None:
    base, tuned = pair()
    centre = Centre.of(base[:, :50], tuned[:, :50])
    whole = gathered(base, tuned, centre, [])
    shards = [gathered(base[:, i : i + 30], tuned[:, i : i + 30], centre, []) for i in range(0, 300, 30)]
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3)).tolist()
    merged = PairMoments.zeros(centre)
    for index in order:
        merged = merged.merge(shards[index])
    for field in fields(PairMoments):
        if field.name != "centre":
            one, other = (torch.as_tensor(getattr(moments, field.name)) for moments in (whole, merged))
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=field.name)


def test_the_stream_agrees_with_a_naive_computation_over_all_rows() -> None:
    base, tuned = pair()
    centre = Centre.of(base, tuned)
    found = similarities(gathered(base, tuned, centre, [100, 200]))
    for site, result in enumerate(found):
        x, y = base[site].double(), tuned[site].double()
        cosine = torch.nn.functional.cosine_similarity(x, y, dim=1).mean()
        centred = torch.nn.functional.cosine_similarity(x - x.mean(0), y - y.mean(0), dim=1).mean()
        assert result.cosine == pytest.approx(float(cosine), rel=1e-9)
        assert result.cosine_centred == pytest.approx(float(centred), rel=1e-9)
        assert result.relative_l2 == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-9)


@pytest.mark.parametrize(("side", "value"), [("base", float("nan")), ("tuned", float("inf"))])
def test_a_value_that_is_not_finite_is_reported_and_not_added(side: str, value: float) -> None:
    base, tuned = pair()
    moments = PairMoments.zeros(Centre.of(base, tuned))
    {"base": base, "tuned": tuned}[side][1, 5, 2] = value
    with pytest.raises(NotFinite, match=f"{side} model.* at layer 1"):
        moments.add(base, tuned)
    assert moments.n == 0
    assert float(moments.xx.abs().sum()) == 0.0


def test_leaving_a_shard_out_gives_the_moments_of_the_rest() -> None:
    base, tuned = pair()
    centre = Centre.of(base, tuned)
    whole, part = gathered(base, tuned, centre, []), gathered(base[:, 40:90], tuned[:, 40:90], centre, [])
    rest = [*range(40), *range(90, 300)]
    expected = gathered(base[:, rest], tuned[:, rest], centre, [])
    for name, value in whole.without(part).sums().items():
        one, other = torch.as_tensor(value), torch.as_tensor(getattr(expected, name))
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-8, msg=name)


def test_moments_of_different_centres_are_not_added_up() -> None:
    base, tuned = pair()
    one, other = (PairMoments.zeros(Centre.of(base[:, :n], tuned[:, :n])) for n in (10, 20))
    with pytest.raises(ValueError, match="different centres"):
        one.merge(other)


def test_cosines_of_zero_rows_have_a_meaning() -> None:
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    assert row_cosines(zero, zero).item() == 1.0
    assert row_cosines(zero, one).item() == 0.0
