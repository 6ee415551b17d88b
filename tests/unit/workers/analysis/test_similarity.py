from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.analysis.moments import Frame, PairMoments
from workers.analysis.similarity import MIN_ROWS, NuclearNorm, SiteSimilarity, cross_site_cka, similarities


def similarity(x: Tensor, y: Tensor) -> SiteSimilarity:
    moments = PairMoments.zeros(Frame.of(x[None, : len(x) // 2], y[None, : len(y) // 2]))
    moments.add(x[None], y[None])
    return similarities(moments)[0]


def gram_cka(x: Tensor, y: Tensor) -> float:
    """Debiased CKA in the zero-diagonal Gram form of Song et al. 2012, eq. 5."""

    def hsic1(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        n = len(k)
        k, l = k.clone().fill_diagonal_(0), l.clone().fill_diagonal_(0)  # noqa: E741
        ones = torch.ones(n, dtype=k.dtype)
        first = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2))
        return (first - 2 / (n - 2) * (ones @ k @ l @ ones)) / (n * (n - 3))

    k, l = x.double() @ x.double().T, y.double() @ y.double().T  # noqa: E741
    return float(hsic1(k, l) / (hsic1(k, k) * hsic1(l, l)).sqrt())


def draw(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(MIN_ROWS, 60), width=st.integers(2, 70), mix=st.floats(0, 1), shift=st.floats(-5, 5))
def test_debiased_cka_agrees_with_its_gram_form(rows: int, width: int, mix: float, shift: float) -> None:
    x = draw(rows, width, 0).double() + shift
    y = mix * x.flip(1) + draw(rows, width, 1).double() - shift
    assert similarity(x, y).cka == pytest.approx(gram_cka(x, y), abs=1e-8)


def test_cka_does_not_change_under_rotation_and_scale() -> None:
    x, y = draw(200, 16, 0), draw(200, 16, 0) + 0.5 * draw(200, 16, 1)
    rotation = torch.linalg.qr(draw(16, 16, 2)).Q
    one, other = similarity(x, y), similarity(x, 3 * y @ rotation)
    assert one.cka == pytest.approx(other.cka, abs=1e-5)
    assert one.cosine_centred != pytest.approx(other.cosine_centred, abs=0.1)


def test_independent_data_is_near_zero_even_with_fewer_rows_than_dimensions() -> None:
    found = [similarity(draw(128, 768, 2 * seed), draw(128, 768, 2 * seed + 1)).cka for seed in range(5)]
    assert all(value is not None and abs(value) < 0.05 for value in found)


def test_a_site_that_does_not_vary_has_no_cka_and_says_so() -> None:
    constant = torch.full((50, 8), 0.3)
    found = similarity(constant, constant.clone())
    assert (found.cka, found.cosine_centred, found.relative_l2) == (None, None, 0.0)
    assert found.undefined == "the rows have no variance here"


def test_too_few_rows_give_no_number_at_all() -> None:
    found = similarity(draw(MIN_ROWS - 1, 4, 0), draw(MIN_ROWS - 1, 4, 1))
    assert found == SiteSimilarity(
        None, None, None, None, undefined=f"only {MIN_ROWS - 1} rows; at least {MIN_ROWS} are needed"
    )


def test_the_cross_site_map_is_exact_on_many_rows_of_one_strong_direction() -> None:
    """Two thousand rows give four million terms of very unequal size: float32 sums go above 1 here."""
    base = torch.stack([draw(2000, 32, seed) * torch.logspace(0, -3, 32) + 5 for seed in range(2)])
    found = cross_site_cka(base, base.clone())
    assert found.diagonal().tolist() == pytest.approx([1.0, 1.0], abs=1e-9)
    assert float(found.max()) <= 1 + 1e-9
    assert float(found[0, 1]) == pytest.approx(gram_cka(base[0], base[1]), abs=1e-5)


def test_the_cross_site_map_agrees_with_the_gram_form_everywhere() -> None:
    base = torch.stack([draw(90, 12, seed) for seed in range(3)])
    tuned = base + torch.stack([0.5 * seed * draw(90, 12, 10 + seed) for seed in range(3)])
    found = cross_site_cka(base, tuned)
    for i in range(3):
        for j in range(3):
            assert float(found[i, j]) == pytest.approx(gram_cka(base[i], tuned[j]), abs=1e-4)
    constant = base.clone()
    constant[1] = 2.0
    assert torch.isnan(cross_site_cka(constant, tuned)[1]).all()


def _spectrum(width: int, seed: int) -> Tensor:
    """A matrix with singular values from 1 down to 1e-4, as cross-covariances of activations have."""
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0] for _ in "ab")
    matrix: Tensor = one @ torch.diag(torch.logspace(0, -4, width, dtype=torch.float64)) @ other
    return matrix


def test_a_nuclear_norm_near_a_known_one_is_that_of_the_decomposition() -> None:
    matrix = _spectrum(48, 0)
    norm = NuclearNorm(matrix)
    assert norm.value == pytest.approx(float(torch.linalg.svdvals(matrix).sum()), rel=1e-12)
    generator = torch.Generator().manual_seed(1)
    left, values, right = torch.linalg.svd(matrix)
    for size in (0.003, 0.03):
        noise = torch.randn(48, 48, generator=generator, dtype=torch.float64)
        root = values.sqrt()
        step = size * left @ (root[:, None] * noise * root[None, :]) @ right
        near = 0.95 * matrix + step
        exact = float(torch.linalg.svdvals(near).sum())
        assert norm.near(near) == pytest.approx(exact, abs=0.03 * abs(exact - 0.95 * norm.value))


def test_a_nuclear_norm_that_is_not_near_is_decomposed() -> None:
    other = _spectrum(48, 5)
    assert NuclearNorm(_spectrum(48, 0)).near(other) == pytest.approx(float(torch.linalg.svdvals(other).sum()))


def test_a_matrix_of_zeros_has_no_norm() -> None:
    zeros = torch.zeros(4, 4, dtype=torch.float64)
    assert NuclearNorm(zeros).near(zeros) == 0.0
