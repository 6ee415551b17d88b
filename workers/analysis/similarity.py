"""Similarity of two sets of representations, read off their additive moments or a small sample.

Pure mathematics: tensors in, frozen dataclasses out. Definitions and ranges are in `docs/numbers.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.analysis.moments import PairMoments

MIN_ROWS = 20
"""Fewer rows than this say nothing about similarity: every measure is then undefined."""

_GRAM_ROWS = 128
_NO_VARIANCE = 1e-10
"""A site whose variance is below this share of its mean square holds one constant vector, up to rounding."""


@dataclass(frozen=True)
class SiteSimilarity:
    """Similarity at one site. A measure that has no meaning there is None, and `undefined` says why.

    cosine: mean cosine of the rows of both models, [-1, 1].
    cosine_centred: the same after subtracting each model's centre, [-1, 1].
    relative_l2: norm(Y - X)_F / norm(X)_F, >= 0.
    cka: debiased linear CKA, at most 1; slightly negative values are possible and not clipped.
    """

    cosine: float | None
    cosine_centred: float | None
    relative_l2: float | None
    cka: float | None
    undefined: str | None = None


def similarities(moments: PairMoments) -> list[SiteSimilarity]:
    """The four measures at each of the S sites of `moments`."""
    if moments.n < MIN_ROWS:
        reason = f"only {moments.n} rows; at least {MIN_ROWS} are needed"
        return [SiteSimilarity(None, None, None, None, reason)] * len(moments.diff_sq)
    cka, varied = debiased_cka(moments)
    return [_site(moments, site, float(cka[site]), bool(varied[site])) for site in range(len(cka))]


def _site(moments: PairMoments, site: int, cka: float, varied: bool) -> SiteSimilarity:
    base_sq = float(moments.base_sq[site])
    relative_l2 = (float(moments.diff_sq[site]) / base_sq) ** 0.5 if base_sq > 0 else None
    cosine = float(moments.cosine[site]) / moments.n
    if not varied:
        return SiteSimilarity(cosine, None, relative_l2, None, "the rows do not vary here")
    return SiteSimilarity(cosine, float(moments.cosine_centred[site]) / moments.n, relative_l2, cka)


def debiased_cka(moments: PairMoments) -> tuple[Tensor, Tensor]:
    """Debiased linear CKA at each site, and whether both models vary there: ([S] float64, [S] bool).

    CKA = HSIC1(X, Y) / sqrt(HSIC1(X, X) HSIC1(Y, Y)) with the unbiased estimator HSIC1 of Song et al. 2012, in its
    feature-space form: exact, O(D^2) memory, N >= 4.
    """
    m, n = moments, moments.n
    mean_x, mean_y = m.sum_x / n, m.sum_y / n
    cov_xx = m.xx - n * _outer(mean_x, mean_x)
    cov_yy = m.yy - n * _outer(mean_y, mean_y)
    cov_xy = m.xy - n * _outer(mean_x, mean_y)
    trace_x, trace_y = _trace(cov_xx), _trace(cov_yy)
    k_l = _centred_square_products(n, mean_x, mean_y, m.xx, m.yy, m.xy, m.a_x, m.a_y, m.b_x, m.b_y, m.ab)
    k_k = _centred_square_products(n, mean_x, mean_x, m.xx, m.xx, m.xx, m.a_x, m.a_x, m.a_x, m.a_x, m.aa)
    l_l = _centred_square_products(n, mean_y, mean_y, m.yy, m.yy, m.yy, m.b_y, m.b_y, m.b_y, m.b_y, m.bb)
    hsic_xy = _hsic1(n, cov_xy, k_l, trace_x, trace_y)
    hsic_xx = _hsic1(n, cov_xx, k_k, trace_x, trace_x)
    hsic_yy = _hsic1(n, cov_yy, l_l, trace_y, trace_y)
    square_x = trace_x + n * (mean_x + m.centre.base).square().sum(-1)
    square_y = trace_y + n * (mean_y + m.centre.tuned).square().sum(-1)
    varied = (trace_x > _NO_VARIANCE * square_x) & (trace_y > _NO_VARIANCE * square_y)
    varied &= (hsic_xx > 0) & (hsic_yy > 0)
    denominator = torch.where(varied, hsic_xx * hsic_yy, torch.ones_like(hsic_xx)).sqrt()
    return hsic_xy / denominator, varied


def _hsic1(n: int, cov: Tensor, square_products: Tensor, trace_x: Tensor, trace_y: Tensor) -> Tensor:
    correction = trace_x * trace_y / ((n - 1) * (n - 2)) - n / (n - 2) * square_products
    return (cov.square().sum(dim=(1, 2)) + correction) / (n * (n - 3))


def _centred_square_products(
    n: int,
    mean_x: Tensor,
    mean_y: Tensor,
    xx: Tensor,
    yy: Tensor,
    xy: Tensor,
    a_x: Tensor,
    a_y: Tensor,
    b_x: Tensor,
    b_y: Tensor,
    ab: Tensor,
) -> Tensor:
    """Sum over rows of |x - mean_x|^2 |y - mean_y|^2, expanded into the sums that were gathered. [S]"""
    p, q = mean_x.square().sum(-1), mean_y.square().sum(-1)
    a, b = _trace(xx), _trace(yy)
    cross = torch.einsum("sd,sde,se->s", mean_x, xy, mean_y)
    return ab - 2 * (a_y * mean_y).sum(-1) - 2 * (b_x * mean_x).sum(-1) + q * a + p * b + 4 * cross - 3 * n * p * q


def _outer(u: Tensor, v: Tensor) -> Tensor:
    return u[:, :, None] * v[:, None, :]


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2).sum(-1)


def cross_site_cka(base: Tensor, tuned: Tensor) -> Tensor:
    """Debiased linear CKA between every site of one model and every site of the other.

    Args:
        base, tuned: [S, N, D], the same N rows in both; N is a sample of a few thousand at most, since one N x N Gram
            matrix for each site is held.

    Returns:
        [S, S] float64, rows are base sites; at most 1; NaN where a site does not vary.
    """
    base_grams = _centred_grams(base)
    tuned_grams = _centred_grams(tuned)
    grams = torch.cat([base_grams, tuned_grams])
    products = torch.zeros(len(grams), len(grams), dtype=torch.float64)
    for rows in grams.split(_GRAM_ROWS, dim=1):  # millions of terms: summed in float32 they would be a percent off
        flat = rows.double().flatten(1)
        products += flat @ flat.T
    norms = products.diagonal().sqrt()
    cka = products / (norms[:, None] * norms[None, :])  # 0 / 0 is NaN where a site does not vary
    return cka[: len(base), len(base) :]


def _centred_grams(rows: Tensor) -> Tensor:
    """U-centred Gram matrices (Szekely & Rizzo 2014): their inner products are n (n - 3) HSIC1.

    [S, N, D] -> [S, N, N] float32
    """
    sites, n, _ = rows.shape
    grams = rows.new_empty(sites, n, n, dtype=torch.float32)
    for site in range(sites):
        x = rows[site].float()
        x = x - x.mean(0)
        gram = x @ x.T
        spread = float(x.square().sum())
        if spread <= _NO_VARIANCE * float(rows[site].float().square().sum()):
            grams[site] = 0
            continue
        gram.fill_diagonal_(0.0)
        row_sums = gram.sum(0)
        gram -= (row_sums[:, None] + row_sums[None, :]) / (n - 2)
        gram += row_sums.sum() / ((n - 1) * (n - 2))
        grams[site] = gram.fill_diagonal_(0.0)
    return grams
