"""Similarity of two sets of representations, read off their additive moments or a small sample.

Pure mathematics: tensors in, frozen dataclasses out. Definitions and ranges are in `docs/numbers.md`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from workers.analysis.moments import PairMoments, symmetric

Number = TypeVar("Number", float, Tensor)

MIN_ROWS = 20
"""Fewer rows than this say nothing about similarity: every measure is then undefined."""

SMALL_STEP = 0.5
"""Of a pair of singular values: up to here the second-order term of a nuclear norm is a small part of it."""

_GRAM_ROWS = 128
NO_VARIANCE = "the rows have no variance here"
_NO_VARIANCE = 1e-10
"""A site whose variance is below this share of its mean square holds one constant vector, up to rounding."""


@dataclass(frozen=True)
class SiteSimilarity:
    """Similarity at one site. A measure that has no meaning there is None, and `undefined` says why.

    cosine: mean cosine of the rows of both models, [-1, 1].
    cosine_centred: the same after subtracting each model's mean, [-1, 1].
    relative_l2: norm(Y - X)_F / norm(X)_F, >= 0. relative_l2_centred: the same after subtracting each model's mean.
    cka: debiased linear CKA, at most 1; slightly negative values are possible and not clipped.
    cka_standardized: the same with every feature divided by its standard deviation, so that no single feature counts
        more than another.
    procrustes: 1 - nuclear norm(X^T Y) / (norm(X)_F norm(Y)_F) after centring (Ding et al. 2021), [0, 1].
    """

    cosine: float | None
    cosine_centred: float | None
    relative_l2: float | None
    cka: float | None
    cka_standardized: float | None = None
    procrustes: float | None = None
    relative_l2_centred: float | None = None
    undefined: str | None = None


def drift_of(site: SiteSimilarity) -> float:
    """1 - CKA, 0 (the same) to about 1; where CKA has no meaning, relative L2 tells whether anything moved at all.

    Raises:
        ValueError: the site has no measure.
    """
    if site.cka is not None:
        return 1.0 - site.cka
    if site.relative_l2 is None:
        raise ValueError("a layer without any measure has no drift")
    return min(1.0, site.relative_l2)


def similarities(moments: PairMoments, near: Sequence[NuclearNorm] | None = None) -> list[SiteSimilarity]:
    """All measures at each of the S sites of `moments`.

    Args:
        near: of the cross-covariances of almost the same rows, by site: saves a decomposition for each.
    """
    if moments.n < MIN_ROWS:
        return [too_few_rows(moments.n)] * moments.sites
    return [_site(moments, site, near[site] if near is not None else None) for site in range(moments.sites)]


def too_few_rows(count: int) -> SiteSimilarity:
    """What is said of fewer than MIN_ROWS rows."""
    reason = f"only {count} rows; at least {MIN_ROWS} are needed"
    return SiteSimilarity(None, None, None, None, undefined=reason)


def varies(spread: float, n: int, mean: Tensor) -> bool:
    """Whether n rows of one mean [D] and a summed squared distance from it are more than one vector and rounding."""
    return spread > _NO_VARIANCE * (spread + n * float(mean.square().sum()))


def nuclear_norms(moments: PairMoments) -> list[NuclearNorm]:
    """Of the cross-covariance at each site."""
    return [NuclearNorm(_SiteSums.of(moments, site).cross_covariance()) for site in range(moments.sites)]


class NuclearNorm:
    """The sum of the singular values of a matrix A = U S V^T, and of matrices near a multiple of it.

    ||c A + E||_* = c ||A||_* + tr M + sum over i < j of (M_ij - M_ji)^2 / (2 c (s_i + s_j)) + O(E^3), M = U^T E V: the
    Taylor series of the trace of the polar factor (Higham 2008, Functions of Matrices, section 8). Where a step is not
    small beside its pair of singular values, the matrix is decomposed itself.

    Args:
        matrix: [D, D], float64.
    """

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        self._left, self._values, right = torch.linalg.svd(matrix)
        self._right = right.T
        self._largest = max(float(self._values[0]), torch.finfo(matrix.dtype).tiny)
        self._pairs = ((self._values[:, None] + self._values[None, :]) / self._largest).float()
        self._square = max(float(matrix.square().sum()), torch.finfo(matrix.dtype).tiny)
        self.value = float(self._values.sum())

    def near(self, matrix: Tensor) -> float:
        """Of a matrix close to a multiple of this one, float64; off by about 1 % of their difference."""
        step = self._left.T @ (matrix - self._matrix) @ self._right
        near = self._expanded(step.diagonal(), (step / self._largest).float())
        return near if near is not None else float(torch.linalg.svdvals(matrix).sum())

    def less(self, base: Tensor, tuned: Tensor) -> float:
        """Of this matrix less base^T tuned, of few rows [n, D] each; off by as much."""
        left, right = base @ self._left, tuned @ self._right
        step = (-left / self._largest).float().T @ right.float()
        near = self._expanded(-(left * right).sum(0), step)
        return near if near is not None else float(torch.linalg.svdvals(self._matrix - base.T @ tuned).sum())

    def _expanded(self, along: Tensor, step: Tensor) -> float | None:
        """The second-order expansion; None where the step is not small.

        The multiple c is the one that is nearest to the matrix. The second order is small: float32 serves it.

        Args:
            along, step: in the singular vectors, the diagonal [D] float64, and all of it [D, D] float32 in units of the
            largest singular value.
        """
        scale = 1 + float(along @ self._values) / self._square
        turned, sums = step - step.T, scale * self._pairs
        if bool((turned.abs() > SMALL_STEP * sums).any()):
            return None
        second = torch.where(sums > 0, turned.square() / sums, 0.0)  # nothing turns where both values are 0
        return self.value + float(along.sum()) + self._largest * float(second.sum(dtype=torch.float64)) / 4


def _site(moments: PairMoments, site: int, near: NuclearNorm | None = None) -> SiteSimilarity:
    difference_sq, base_sq, cosines, centred_cosines = moments.scalars[site].tolist()
    relative_l2 = (max(0.0, difference_sq) / base_sq) ** 0.5 if base_sq > 0 else None
    cosine = cosines / moments.n
    sums = _SiteSums.of(moments, site)
    frame = moments.frame
    if not (sums.base.varies(sums.n, frame.base[site]) and sums.tuned.varies(sums.n, frame.tuned[site])):
        return SiteSimilarity(cosine, None, relative_l2, None, undefined=NO_VARIANCE)
    if difference_sq == 0:  # the same rows twice: rounding shall not say otherwise
        return SiteSimilarity(1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0)
    cka, standardised = _debiased_cka(sums), _debiased_cka(_SiteSums.of(moments, site, standardised=True))
    if cka is None or standardised is None:
        return SiteSimilarity(cosine, None, relative_l2, None, undefined=NO_VARIANCE)
    shift = sums.tuned.mean + frame.tuned[site] - sums.base.mean - frame.base[site]
    varying = max(0.0, difference_sq - sums.n * float(shift.square().sum()))
    return SiteSimilarity(
        cosine=cosine,
        cosine_centred=centred_cosines / moments.n,
        relative_l2=relative_l2,
        cka=cka,
        cka_standardized=standardised,
        procrustes=_procrustes(sums, near),
        relative_l2_centred=(varying / float(sums.base.covariance(sums.n).trace())) ** 0.5,
    )


@dataclass(frozen=True)
class _Side:
    """Sums over one model's rows z at one site; a and b are the squared norms of both models' rows.

    mean: [D]. gram: [D, D], sum of z z^T. by_a, by_b: [D], sums of a z and b z.
    """

    mean: Tensor
    gram: Tensor
    by_a: Tensor
    by_b: Tensor

    def covariance(self, n: int) -> Tensor:
        return self.gram - n * torch.outer(self.mean, self.mean)

    def varies(self, n: int, centre: Tensor) -> bool:
        return varies(float(self.covariance(n).trace()), n, self.mean + centre)


@dataclass(frozen=True)
class _SiteSums:
    """The moments of one site, by what the formulas call them; cross: [D, D], sum of x y^T; aa, ab, bb: scalars."""

    n: int
    base: _Side
    tuned: _Side
    cross: Tensor
    aa: float
    ab: float
    bb: float

    @staticmethod
    def of(moments: PairMoments, site: int, standardised: bool = False) -> _SiteSums:
        """With every feature as it is, or multiplied by the frame's scale."""
        a, b = (3, 4) if standardised else (1, 2)
        frame, squares = moments.frame, moments.squares[site]
        scales = (frame.base_scale[site], frame.tuned_scale[site])
        if not standardised:
            scales = (torch.ones_like(scales[0]), torch.ones_like(scales[1]))
        base, tuned = (
            _Side(
                mean=weighted[0] * scale / moments.n,
                gram=symmetric(gram) * torch.outer(scale, scale),
                by_a=weighted[a] * scale,
                by_b=weighted[b] * scale,
            )
            for weighted, gram, scale in zip(
                moments.weighted[site], (moments.xx[site], moments.yy[site]), scales, strict=True
            )
        )
        cross = moments.xy[site] * torch.outer(*scales)
        return _SiteSums(moments.n, base, tuned, cross, *(float(squares[pair]) for pair in ((a, a), (a, b), (b, b))))

    def cross_covariance(self) -> Tensor:
        return self.cross - self.n * torch.outer(self.base.mean, self.tuned.mean)


def _debiased_cka(sums: _SiteSums) -> float | None:
    """CKA = HSIC1(X, Y) / sqrt(HSIC1(X, X) HSIC1(Y, Y)); None where one of the two hardly varies.

    With the unbiased estimator HSIC1 of Song et al. 2012 in its feature-space form: exact, O(D^2) memory, N >= 4.
    """
    n, x, y = sums.n, sums.base, sums.tuned
    of_x = _hsic1(n, x.covariance(n), _square_products(n, x, x, x.gram, x.by_a, x.by_a, sums.aa))
    of_y = _hsic1(n, y.covariance(n), _square_products(n, y, y, y.gram, y.by_b, y.by_b, sums.bb))
    if of_x <= 0 or of_y <= 0:
        return None
    traces = (float(x.covariance(n).trace()), float(y.covariance(n).trace()))
    both = _square_products(n, x, y, sums.cross, y.by_a, x.by_b, sums.ab)
    return _hsic1(n, sums.cross_covariance(), both, traces) / math.sqrt(of_x * of_y)


def hsic1(n: Number, norm: Number, traces: tuple[Number, Number], square_products: Number) -> Number:
    """From n >= 4 centred rows of two models: HSIC1 of Song et al. 2012 in its feature-space form.

    Args:
        norm: squared Frobenius norm of the sum of x y^T. traces: sums of |x|^2 and of |y|^2.
        square_products: sum of |x|^2 |y|^2.
    """
    correction = traces[0] * traces[1] / ((n - 1) * (n - 2)) - n / (n - 2) * square_products
    return (norm + correction) / (n * (n - 3))


def _hsic1(n: int, covariance: Tensor, square_products: float, traces: tuple[float, float] | None = None) -> float:
    """Of the sums of centred outer products; `traces` are those of both sides' own, by default this one's twice."""
    own = float(covariance.trace())
    return hsic1(float(n), float(covariance.square().sum()), traces or (own, own), square_products)


def _square_products(
    n: int, one: _Side, other: _Side, cross: Tensor, weighted_other: Tensor, weighted_one: Tensor, products: float
) -> float:
    """Sum over rows of |u - mean_u|^2 |v - mean_v|^2, expanded into the sums that were gathered.

    weighted_other: sum of |u|^2 v. weighted_one: sum of |v|^2 u. products: sum of |u|^2 |v|^2.
    """
    p, q = float(one.mean.square().sum()), float(other.mean.square().sum())
    a, b = float(one.gram.trace()), float(other.gram.trace())
    mixed = float(one.mean @ cross @ other.mean)
    linear = float(weighted_other @ other.mean) + float(weighted_one @ one.mean)
    return products - 2 * linear + q * a + p * b + 4 * mixed - 3 * n * p * q


def _procrustes(sums: _SiteSums, near: NuclearNorm | None) -> float:
    """1 - nuclear norm(X^T Y) / (norm(X)_F norm(Y)_F) of the centred rows, in [0, 1]."""
    n, cross = sums.n, sums.cross_covariance()
    norms = math.sqrt(float(sums.base.covariance(n).trace()) * float(sums.tuned.covariance(n).trace()))
    aligned = near.near(cross) if near is not None else float(torch.linalg.svdvals(cross).sum())
    return min(1.0, max(0.0, 1.0 - aligned / norms))


def row_drift(base: Tensor, tuned: Tensor, spreads: tuple[Tensor, Tensor]) -> Tensor:
    """How far a row moved, on the scale of how far rows lie apart: |y - x|^2 / (mean |x|^2 + mean |y|^2), >= 0.

    0: not at all; 1: as far as unrelated rows of the two models are on average. A row near the centre that moves a
    little is not far, whatever its angle does.

    Args:
        base, tuned: rows less their model's mean, [S, ..., D]. spreads: mean squared norms of such rows, [S] each.
    """
    scale = (spreads[0] + spreads[1]).view(-1, *[1] * (base.ndim - 2))
    moved = (tuned - base).square().sum(-1)
    return torch.where(moved == 0, 0.0, moved / scale.clamp_min(torch.finfo(moved.dtype).tiny))


def cross_site_cka(base: Tensor, tuned: Tensor) -> Tensor:
    """Debiased linear CKA between every site of one model and every site of the other.

    Args:
        base, tuned: [S, N, D], the same N rows in both; N is a sample of a few thousand at most, since one N x N Gram
            matrix for each site is held.

    Returns:
        [S, S] float64, rows are base sites; at most 1; NaN where a site does not vary.
    """
    grams = _centred_grams([*base, *tuned])
    products = torch.zeros(len(grams), len(grams), dtype=torch.float64)
    for rows in grams.split(_GRAM_ROWS, dim=1):  # millions of terms: summed in float32 they would be a percent off
        flat = rows.double().flatten(1)
        products += flat @ flat.T
    norms = products.diagonal().sqrt()
    cka = products / (norms[:, None] * norms[None, :])  # 0 / 0 is NaN where a site does not vary
    return cka[: len(base), len(base) :]


def _centred_grams(sites: Sequence[Tensor]) -> Tensor:
    """U-centred Gram matrices (Szekely & Rizzo 2014): their inner products are n (n - 3) HSIC1.

    S times [N, D] -> [S, N, N] float32
    """
    n = len(sites[0])
    grams = sites[0].new_empty(len(sites), n, n, dtype=torch.float32)
    for site, rows in enumerate(sites):
        x = rows.float()
        x = x - x.mean(0)
        gram = x @ x.T
        spread = float(x.square().sum())
        if spread <= _NO_VARIANCE * float(rows.float().square().sum()):
            grams[site] = 0
            continue
        gram.fill_diagonal_(0.0)
        row_sums = gram.sum(0)
        gram -= (row_sums[:, None] + row_sums[None, :]) / (n - 2)
        gram += row_sums.sum() / ((n - 1) * (n - 2))
        grams[site] = gram.fill_diagonal_(0.0)
    return grams
