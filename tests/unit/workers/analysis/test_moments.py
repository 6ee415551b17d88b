from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

from workers.analysis import moments as module
from workers.analysis.moments import SUMS, Frame, NotFinite, PairMoments, row_cosines
from workers.analysis.rowsums import BY_ROW, NORMS, centre_and_sum
from workers.analysis.similarity import similarities


def pair(rows: int = 300, width: int = 12, sites: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated rows with a common mean and features of very unequal size."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(1, -1, width)
    base = torch.randn(sites, rows, width, generator=generator) * scales + 4
    return base, 0.6 * base + torch.randn(sites, rows, width, generator=generator) * scales


def gathered(base: Tensor, tuned: Tensor, frame: Frame, cuts: list[int]) -> PairMoments:
    moments = PairMoments.zeros(frame)
    for first, last in zip([0, *cuts], [*cuts, base.shape[1]], strict=True):
        moments.add(base[:, first:last], tuned[:, first:last])
    return moments


def naive(x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, float]:
    """Every measure from its definition, over all rows at once, in float64; the judge of the streamed ones."""

    def cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        return float(np.mean([1 - cdist(a[None], b[None], "cosine")[0, 0] for a, b in zip(one, other, strict=True)]))

    def hsic1(k: NDArray[np.float64], l: NDArray[np.float64]) -> float:  # noqa: E741
        n = len(k)
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
        total = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ l).sum()
        return float(total / (n * (n - 3)))

    def cka(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        k, l = one @ one.T, other @ other.T  # noqa: E741
        return float(hsic1(k, l) / (hsic1(k, k) * hsic1(l, l)) ** 0.5)

    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    aligned = np.linalg.svd(centred_x.T @ centred_y, compute_uv=False).sum()
    return {
        "cosine": cosine(x, y),
        "cosine_centred": cosine(centred_x, centred_y),
        "relative_l2": float(np.linalg.norm(y - x) / np.linalg.norm(x)),
        "cka": cka(centred_x, centred_y),
        "cka_standardized": cka(centred_x / x.std(0), centred_y / y.std(0)),
        "procrustes": 1 - float(aligned / np.linalg.norm(centred_x) / np.linalg.norm(centred_y)),
    }


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(10)), seed=st.integers(0, 1000), rows=st.integers(40, 400))
def test_one_pass_ten_shards_in_any_order_and_the_definitions_agree(order: list[int], seed: int, rows: int) -> None:
    base, tuned = pair(rows, seed=seed, sites=1)
    frame = Frame.of(base, tuned)
    shards = [
        gathered(one, other, frame, [])
        for one, other in zip(base.tensor_split(10, 1), tuned.tensor_split(10, 1), strict=True)
    ]
    assert len(shards) == 10
    merged = PairMoments.zeros(frame)
    for index in order:
        merged.merge(shards[index])
    found = [asdict(similarities(one)[0]) for one in (gathered(base, tuned, frame, []), merged)]
    expected = naive(base[0].double().numpy(), tuned[0].double().numpy())
    for measure, value in expected.items():
        assert [one[measure] for one in found] == pytest.approx([value, value], rel=1e-9), measure


def test_identical_models_have_exactly_zero_drift() -> None:
    base, _ = pair()
    moments = gathered(base, base.clone(), Frame.of(base, base), [7, 150])
    for site in similarities(moments):
        assert site == similarities(moments)[0]
        assert (site.relative_l2, site.procrustes) == (0.0, 0.0)
        assert (site.cka, site.cka_standardized, site.cosine, site.cosine_centred) == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(("block", "strip"), [(1, 1), (7, 5), (2048, 96)])
def test_sums_do_not_depend_on_how_rows_are_cut(block: int, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = pair(100)
    frame = Frame.of(base, tuned)
    for name, size in (("BLOCK_ROWS", block), ("STRIP", strip)):
        monkeypatch.setattr(module, name, size)
    found = gathered(base, tuned, frame, [33])
    x, y = (rows.double() - centre[:, None] for rows, centre in ((base, frame.base), (tuned, frame.tuned)))
    torch.testing.assert_close(module.symmetric(found.xx), x.mT @ x)
    torch.testing.assert_close(module.symmetric(found.yy), y.mT @ y)
    torch.testing.assert_close(found.xy, x.mT @ y)
    torch.testing.assert_close(found.squares[:, 1, 2], (x.square().sum(2) * y.square().sum(2)).sum(1))


@pytest.mark.parametrize(("side", "value"), [("base", float("nan")), ("tuned", float("inf"))])
def test_a_value_that_is_not_finite_is_reported(side: str, value: float) -> None:
    base, tuned = pair()
    moments = PairMoments.zeros(Frame.of(base, tuned))
    {"base": base, "tuned": tuned}[side][1, 5, 2] = value
    with pytest.raises(NotFinite, match=f"{side} model.* at layer 1"):
        moments.add(base, tuned)


def test_large_finite_values_are_not_mistaken_for_infinite_ones() -> None:
    base, tuned = pair(rows=10, width=4)
    base[:, :, 0] = 3e38
    moments = PairMoments.zeros(Frame.of(base, tuned))
    moments.add(base, tuned)
    assert moments.n == 10


def test_leaving_a_shard_out_gives_the_moments_of_the_rest() -> None:
    base, tuned = pair()
    frame = Frame.of(base, tuned)
    whole, part = gathered(base, tuned, frame, []), gathered(base[:, 40:90], tuned[:, 40:90], frame, [])
    rest = [*range(40), *range(90, 300)]
    expected = gathered(base[:, rest], tuned[:, rest], frame, [])
    left = whole.without(part)
    assert left.n == expected.n
    for name in SUMS:
        torch.testing.assert_close(getattr(left, name), getattr(expected, name), rtol=1e-9, atol=1e-6, msg=name)


def test_moments_of_different_frames_are_not_added_up() -> None:
    base, tuned = pair()
    one, other = (PairMoments.zeros(Frame.of(base[:, :n], tuned[:, :n])) for n in (10, 20))
    with pytest.raises(ValueError, match="different frames"):
        one.merge(other)


def test_one_outlier_feature_does_not_hide_behind_standardised_cka() -> None:
    """A shared feature at 30 deviations on otherwise independent data: plain CKA is fooled, standardised is not."""
    generator = torch.Generator().manual_seed(0)
    base, tuned = torch.randn(2, 1, 2000, 16, generator=generator).unbind(0)
    shared = 30 * torch.randn(2000, generator=generator)
    base[0, :, 0] = tuned[0, :, 0] = shared
    site = similarities(gathered(base, tuned, Frame.of(base, tuned), []))[0]
    assert site.cka == pytest.approx(0.997, abs=0.003)
    assert site.cka_standardized is not None
    assert site.cka_standardized < 0.2


def test_a_feature_that_never_varies_does_not_disturb_the_others() -> None:
    base, tuned = pair(sites=1)
    with_constant = [torch.cat([rows, torch.full((1, 300, 1), 5.0)], 2) for rows in (base, tuned)]
    plain, more = (
        similarities(gathered(one, other, Frame.of(one, other), []))[0]
        for one, other in ((base, tuned), tuple(with_constant))
    )
    assert more.cka_standardized == pytest.approx(plain.cka_standardized, rel=1e-9)
    assert more.procrustes == pytest.approx(plain.procrustes, rel=1e-9)


def test_cosines_of_zero_rows_have_a_meaning() -> None:
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    assert row_cosines(zero, zero).item() == 1.0
    assert row_cosines(zero, one).item() == 0.0


def test_what_is_summed_over_a_row_is_what_its_name_says() -> None:
    """The compiled loop against whole-array arithmetic, for both kinds of numbers it is called with."""
    generator = torch.Generator().manual_seed(0)
    centres, weights = torch.rand(2, 2, 9, dtype=torch.float64, generator=generator).unbind(0)
    for dtype in (torch.float32, torch.float64):
        base, tuned = torch.randn(2, 33, 9, dtype=dtype, generator=generator).unbind(0)
        base[:2] = tuned[1:3] = 0
        sizes = (2, 33, 9), (NORMS, 33), (BY_ROW, 33)
        rows, norms, by_row = (torch.full(size, torch.nan, dtype=torch.float64) for size in sizes)
        centre_and_sum(*(one.numpy() for one in (base, tuned, centres, weights, rows, norms, by_row)))
        raw = torch.stack([base, tuned]).double()
        x, y = centred = raw - centres[:, None]
        plain, scaled = centred.square().sum(2), (centred.square() * weights[:, None]).sum(2)
        torch.testing.assert_close(rows, centred)
        torch.testing.assert_close(norms, torch.stack([torch.ones(33).double(), *plain, *scaled]))
        difference = (raw[1] - raw[0]).square().sum(1)
        of_raw = [*raw.square().sum(2), row_cosines(raw[0], raw[1]), difference]
        torch.testing.assert_close(by_row, torch.stack([*of_raw, row_cosines(x, y)]))


def test_a_dead_feature_is_not_scaled_up_to_the_size_of_the_others() -> None:
    """As the last layer of MiniLM has one: its deviation is 4e-32, and what it does is rounding."""
    base, tuned = pair(sites=1)
    dead = torch.randn(2, 1, 300, 1, generator=torch.Generator().manual_seed(1)) * 1e-32
    with_dead = [torch.cat([rows, extra], 2) for rows, extra in zip((base, tuned), dead, strict=True)]
    plain, more = (
        similarities(gathered(one, other, Frame.of(one, other), []))[0].cka_standardized
        for one, other in ((base, tuned), tuple(with_dead))
    )
    assert more == pytest.approx(plain, rel=1e-9)
