"""Similarity of two models' rows at one site from the rows themselves: of all of them, and without each group.

Gives what `workers.analysis.similarity` gives from moments, but makes no matrix of D x D for a group: what a group adds
to the norm of a sum of outer products follows from its own rows and the sum over all rows.

A subset is all rows, or all without one group: there are C of them, the first is all rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from workers.analysis.moments import Frame, add_gram, symmetric
from workers.analysis.rowsums import BY_ROW, NORMS, centre_and_sum
from workers.analysis.similarity import (
    MIN_ROWS,
    NO_VARIANCE,
    NuclearNorm,
    SiteSimilarity,
    hsic1,
    too_few_rows,
    varies,
)
from workers.analysis.streams import Rows

BLOCK_ROWS = 512
"""Rows that are summed at a time."""

TILE = 288
"""Rows and columns of a product that are made at a time, at most, for all groups."""


@dataclass(frozen=True)
class RowSimilarities:
    """Of all rows, and of those outside each group; the latter empty where too few rows would be left.

    with_others: cosine, CKA and relative L2 alone, of all rows and others; None where no others were given.
    """

    whole: SiteSimilarity
    left_out: list[SiteSimilarity]
    with_others: SiteSimilarity | None = None


def similarities_of_rows(
    groups: Sequence[Rows], frame: Frame, intervals: bool = True, others: Rows | None = None
) -> RowSimilarities:
    """All measures at one site.

    Args:
        groups: rows [1, N, D] of one group of texts after another; together they are the rows.
        frame: of this site, with the meaning that it has in `PairMoments`.
        intervals: whether to leave out each group in turn.
        others: further rows, which count in `with_others` alone.
    """
    rows = Rows.joined(list(groups))
    if rows.n < MIN_ROWS:
        return RowSimilarities(too_few_rows(rows.n), [])
    subsets = _Subsets.of([group.n for group in groups], intervals)
    features = _Centred.of(rows)
    by_row = _by_row(rows, (frame.base[0], frame.tuned[0]), subsets)
    plain, scaled = features.directions(), features.scaled(frame).directions()
    if plain is features:
        products, changes, scaled_changes = _with_changes(plain, subsets, frame)
        of_scaled = products.scaled(frame)
    else:
        products, changes, _ = _with_changes(plain, subsets)
        of_scaled, scaled_changes, _ = _with_changes(scaled, subsets)
    sums = _Sums.of(plain, products, subsets, changes)
    standardised = _Sums.of(scaled, of_scaled, subsets, scaled_changes).cka()
    nuclear = _nuclear_norms(plain, products.cross, subsets)
    means = features.means(subsets)
    sites = []
    for number, site in enumerate(_plain_sites(by_row, sums, means, subsets)):
        n, difference_sq = float(subsets.left[number]), float(by_row[_DIFFERENCE, number])
        spread, other = (float(trace[number]) for trace in sums.traces)
        if site.cka is None or not math.isfinite(standardised[number]):
            sites.append(_without_cka(site))
        elif difference_sq == 0:
            sites.append(SiteSimilarity(1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0))
        else:
            shift = float((means[1][number] - means[0][number]).square().sum())
            found = replace(
                site,
                cosine_centred=float(by_row[_CENTRED_COSINE, number]) / n,
                cka_standardized=standardised[number],
                procrustes=min(1.0, max(0.0, 1.0 - nuclear[number] / math.sqrt(spread * other))),
                relative_l2_centred=math.sqrt(max(0.0, difference_sq - n * shift) / spread),
            )
            sites.append(found)
    with_others = None
    if others is not None:
        every = Rows.joined([rows, others])
        added = products.with_rows(features, others) if plain is features else None
        with_others = cka_of_rows(every, added)
    return RowSimilarities(sites[0], sites[1:], with_others)


def cka_of_rows(rows: Rows, products: _Products | None = None) -> SiteSimilarity:
    """Of rows [1, N, D] at one site: cosine, CKA and relative L2 alone, without a frame or a decomposition.

    Args:
        products: of these rows, where they are known.
    """
    if rows.n < MIN_ROWS:
        return too_few_rows(rows.n)
    subsets, features = _Subsets.of([rows.n], intervals=False), _Centred.of(rows)
    plain = features.directions() if products is None else features
    products = products or _Products.of(plain)
    sums = _Sums.of(plain, products, subsets, torch.zeros(3, subsets.many, dtype=torch.float64))
    (site,) = _plain_sites(_by_row(rows, features.centres, subsets), sums, features.means(subsets), subsets)
    return site


class _Subsets(NamedTuple):
    """ends: of every group, [G + 1], from 0 to N. left: how many rows each subset has, [C] float64."""

    ends: list[int]
    left: Tensor

    @staticmethod
    def of(counts: Sequence[int], intervals: bool) -> _Subsets:
        """Of groups of so many rows; of all rows alone without intervals, or where too few rows would be left."""
        n = sum(counts)
        if not intervals or n - max(counts) < MIN_ROWS:
            return _Subsets([0, n], torch.tensor([n], dtype=torch.float64))
        ends = torch.tensor([0, *counts]).cumsum(0).tolist()
        return _Subsets(ends, n - torch.tensor([0, *counts], dtype=torch.float64))

    @property
    def many(self) -> int:
        """C."""
        return len(self.left)

    def parts(self) -> Iterator[tuple[int, int, int]]:
        """First row and end of every group, and the subset without it; of blocks of rows and 0 where there is none."""
        if self.many > 1:
            yield from zip(self.ends[:-1], self.ends[1:], range(1, self.many), strict=True)
        else:
            yield from ((at, min(at + BLOCK_ROWS, self.ends[-1]), 0) for at in range(0, self.ends[-1], BLOCK_ROWS))

    def summed(self, by_row: Tensor) -> Tensor:
        """Sums over the rows of each subset; [N, ...] -> [C, ...]."""
        total = by_row.sum(0, keepdim=True)
        groups = [by_row[first:last].sum(0, keepdim=True) for first, last, without in self.parts() if without]
        return torch.cat([total, *(total - group for group in groups)])


_BASE, _COSINE, _DIFFERENCE, _CENTRED_COSINE = 0, 2, 3, 4
"""Of what `centre_and_sum` sums by row."""


def _by_row(rows: Rows, centres: tuple[Tensor, Tensor], subsets: _Subsets) -> Tensor:
    """What `centre_and_sum` finds of each row, summed over each subset; [BY_ROW, C]."""
    base, tuned = rows.base[0], rows.tuned[0]
    both, found = torch.stack(centres), torch.empty(BY_ROW, len(base), dtype=torch.float64)
    for start in range(0, len(base), BLOCK_ROWS):
        x, y = (side[start : start + BLOCK_ROWS].contiguous() for side in (base, tuned))
        work = torch.empty(2, *x.shape, dtype=torch.float64), torch.empty(NORMS, len(x), dtype=torch.float64)
        sums = torch.empty(BY_ROW, len(x), dtype=torch.float64)
        centre_and_sum(*(one.numpy() for one in (x, y, both, torch.ones_like(both), *work, sums)))
        found[:, start : start + BLOCK_ROWS] = sums
    return subsets.summed(found.T).T


@dataclass(frozen=True)
class _Centred:
    """Rows of both models [N, D], and what is taken off each feature, and multiplied with it, when they are read."""

    base: Tensor
    tuned: Tensor
    centres: tuple[Tensor, Tensor]
    scales: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def of(rows: Rows) -> _Centred:
        """Rows [1, N, D] about their mean."""
        base, tuned = rows.base[0], rows.tuned[0]
        return _Centred(base, tuned, (base.mean(0, dtype=torch.float64), tuned.mean(0, dtype=torch.float64)))

    @property
    def rows(self) -> int:
        """N."""
        return len(self.base)

    def scaled(self, frame: Frame) -> _Centred:
        """Every feature in units of its deviation."""
        return _Centred(self.base, self.tuned, self.centres, (frame.base_scale[0], frame.tuned_scale[0]))

    def part(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Rows from number `first` to before `last` of both models, [n, D] float64 each."""
        both = zip((self.base, self.tuned), self.centres, strict=True)
        sides = [side[first:last].double() - centre for side, centre in both]
        if self.scales is not None:
            sides = [side * scale for side, scale in zip(sides, self.scales, strict=True)]
        return sides[0], sides[1]

    def columns(self, span: slice) -> tuple[Tensor, Tensor]:
        """Some features of all rows of both models, [N, d] float64 each."""
        both = zip((self.base, self.tuned), self.centres, strict=True)
        sides = [side[:, span].double() - centre[span] for side, centre in both]
        if self.scales is not None:
            sides = [side * scale[span] for side, scale in zip(sides, self.scales, strict=True)]
        return sides[0], sides[1]

    def directions(self) -> _Centred:
        """The same where there are more rows than features, else each model's rows in N directions of its own.

        CKA and nuclear norms do not change: they depend on products of rows of one model alone.
        """
        if self.rows > self.base.shape[1]:
            return self
        base, tuned = (torch.linalg.qr(side.T, mode="r").R.T.contiguous() for side in self.part(0, self.rows))
        nothing = base.new_zeros(base.shape[1])
        return _Centred(base, tuned, (nothing, nothing))

    def moved(self, subsets: _Subsets) -> tuple[Tensor, Tensor]:
        """The mean of each subset of the rows as they are read, [C, D] of each model."""
        means = []
        for number, (side, centre) in enumerate(zip((self.base, self.tuned), self.centres, strict=True)):
            moved = torch.zeros(subsets.many, side.shape[1], dtype=torch.float64)
            for first, last, without in subsets.parts():
                if without:
                    moved[without] = (last - first) * centre - side[first:last].sum(0, dtype=torch.float64)
            scale = 1 if self.scales is None else self.scales[number]
            means.append(moved / subsets.left[:, None] * scale)
        return means[0], means[1]

    def means(self, subsets: _Subsets) -> tuple[Tensor, Tensor]:
        """The mean of each subset of the rows as they came, [C, D] of each model."""
        base, tuned = self.moved(subsets)
        return base + self.centres[0], tuned + self.centres[1]


class _Products(NamedTuple):
    """Sums of outer products of centred rows, [D, D] each: of the base model, of both, of the tuned one."""

    base: Tensor
    cross: Tensor
    tuned: Tensor

    @staticmethod
    def of(rows: _Centred) -> _Products:
        width = rows.base.shape[1]
        found = _Products(*torch.zeros(3, width, width, dtype=torch.float64))
        for start in range(0, rows.rows, BLOCK_ROWS):
            x, y = rows.part(start, start + BLOCK_ROWS)
            found.cross.addmm_(x.T, y)
            add_gram(found.base, x)
            add_gram(found.tuned, y)
        return _Products(symmetric(found.base), found.cross, symmetric(found.tuned))

    def with_rows(self, rows: _Centred, others: Rows) -> _Products:
        """Of the rows that these are of and of others, about the mean of all."""
        more = _Centred(others.base[0], others.tuned[0], rows.centres)
        x, y = more.part(0, others.n)
        left, right = x.sum(0), y.sum(0)  # the rows themselves sum up to 0
        shifts, count = ((left, left), (left, right), (right, right)), rows.rows + others.n
        pairs = ((x, x), (x, y), (y, y))
        return _Products(
            *(
                own + one.T @ other - torch.outer(*shift) / count
                for own, (one, other), shift in zip(self, pairs, shifts, strict=True)
            )
        )

    def scaled(self, frame: Frame) -> _Products:
        """Of the same rows, every feature in units of its deviation."""
        x, y = frame.base_scale[0], frame.tuned_scale[0]
        return _Products(*(one * torch.outer(*by) for one, by in zip(self, ((x, x), (x, y), (y, y)), strict=True)))


class _Sums(NamedTuple):
    """Of each subset, about its own mean; [C] each.

    n: rows. traces: of the covariances of both models, times n. norms: squared Frobenius norms of the three covariances
    that `_Products` has, times n squared. quartic: sums over rows of |x|^4, |x|^2 |y|^2 and |y|^4.
    """

    n: Tensor
    traces: tuple[Tensor, Tensor]
    norms: list[Tensor]
    quartic: list[Tensor]

    @staticmethod
    def of(rows: _Centred, products: _Products, subsets: _Subsets, changes: Tensor) -> _Sums:
        """From what the squared norms of `products` change by in each subset, [3, C]."""
        n, means = subsets.left, rows.moved(subsets)
        mean_norms = [mean.square().sum(1) for mean in means]
        norms = [own.square().sum() + change for own, change in zip(products, changes, strict=True)]
        sums = torch.zeros(8, subsets.many, dtype=torch.float64)  # traces, quartic, and products with the means
        for start, last, without in subsets.parts():
            both = rows.part(start, last)
            along = [side @ mean.T for side, mean in zip(both, means, strict=True)]
            a, b = (
                side.square().sum(1, keepdim=True) - 2 * by_mean + norm
                for side, by_mean, norm in zip(both, along, mean_norms, strict=True)
            )
            p, q = along
            terms = torch.stack([a, b, a * a, a * b, b * b, p * p, p * q, q * q]).sum(1)
            if without:
                terms[:, without] = 0
            sums += terms
        pairs = ((0, 0), (0, 1), (1, 1))
        for norm, along_mean, (one, other) in zip(norms, sums[5:], pairs, strict=True):
            norm += n * (n * mean_norms[one] * mean_norms[other] - 2 * along_mean)
        return _Sums(n, (sums[0], sums[1]), norms, list(sums[2:5]))

    def cka(self) -> list[float]:
        """Debiased CKA of each subset; NaN where one of the two models hardly varies."""
        x, y = self.traces
        of_x, both, of_y = (
            hsic1(self.n, norm, traces, quartic)
            for norm, traces, quartic in zip(self.norms, ((x, x), (x, y), (y, y)), self.quartic, strict=True)
        )
        return torch.where((of_x > 0) & (of_y > 0), both / (of_x * of_y).sqrt(), torch.nan).tolist()


def _with_changes(rows: _Centred, subsets: _Subsets, frame: Frame | None = None) -> tuple[_Products, Tensor, Tensor]:
    """The products, and what the squared norm of each changes by in each subset: |A - B|^2 - |A|^2 of a product A and
    its part B of the group that is left out; [3, C]. The same of rows scaled by the frame, where it is given.

    A tile of the matrices at a time, of all groups: one pass over the rows gives all three.
    """
    width, changes = rows.base.shape[1], torch.zeros(1 + (frame is not None), 3, subsets.many, dtype=torch.float64)
    if subsets.many == 1:
        return _Products.of(rows), changes[0], changes[-1]
    scales = None if frame is None else (frame.base_scale[0].square(), frame.tuned_scale[0].square())
    products = _Products(*torch.empty(3, width, width, dtype=torch.float64))
    groups = [slice(first, last) for first, last, _ in subsets.parts()]
    for left, right in _tiles(width):
        lefts, rights = rows.columns(left), rows.columns(right)
        for number, (one, other) in enumerate(((0, 0), (0, 1), (1, 1))):
            mirrored = one == other and left != right
            if mirrored and right.start < left.start:
                continue
            own = torch.stack([lefts[one][group].T @ rights[other][group] for group in groups])
            weights = torch.outer(scales[one][left], scales[other][right]) if scales is not None else None
            tile = own.sum(0)
            products[number][left, right] = tile
            if mirrored:
                products[number][right, left] = tile.T
            changes[:, number, 1:] += (1 + mirrored) * _changes_in(own, tile, weights)
    return products, changes[0], changes[-1]


def _tiles(width: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of about equal tiles of a matrix."""
    size = math.ceil(width / math.ceil(width / TILE))
    spans = [slice(at, min(at + size, width)) for at in range(0, width, size)]
    yield from product(spans, spans)


def _changes_in(own: Tensor, tile: Tensor, weights: Tensor | None) -> Tensor:
    """Sums of B (B - 2 A) over a tile of A [d, e] and the groups' parts B of it [G, d, e]: as they are, and, where
    there are weights [d, e], weighted with them; [1 or 2, G]. Overwrites `own`.
    """
    own, ones = own.flatten(1), torch.ones(tile.numel(), dtype=torch.float64)
    counted = torch.stack([ones, weights.flatten()] if weights is not None else [ones], 1)
    along = own @ (tile.flatten()[:, None] * counted)
    found: Tensor = (own.square_() @ counted - 2 * along).T
    return found


def _nuclear_norms(rows: _Centred, cross: Tensor, subsets: _Subsets) -> list[float]:
    """Of the cross-covariance of each subset, times its rows."""
    if subsets.many == 1:
        return [float(torch.linalg.svdvals(cross).sum())]
    whole, means = NuclearNorm(cross), rows.moved(subsets)
    found = [whole.value]
    for first, last, without in subsets.parts():
        left = float(subsets.left[without]) ** 0.5
        x, y = (
            torch.cat([side, left * mean[without, None]])
            for side, mean in zip(rows.part(first, last), means, strict=True)
        )
        found.append(whole.less(x, y) if len(x) < x.shape[1] else whole.near(cross - x.T @ y))
    return found


def _plain_sites(
    by_row: Tensor, sums: _Sums, means: tuple[Tensor, Tensor], subsets: _Subsets
) -> Iterator[SiteSimilarity]:
    """Cosine, relative L2 and CKA of each subset."""
    for number, cka in enumerate(sums.cka()):
        n = int(subsets.left[number])
        base_sq, difference_sq = float(by_row[_BASE, number]), float(by_row[_DIFFERENCE, number])
        sides = zip(sums.traces, means, strict=True)
        known = all(varies(float(trace[number]), n, mean[number]) for trace, mean in sides) and math.isfinite(cka)
        same = difference_sq == 0  # rounding shall not say that the same rows twice differ
        site = SiteSimilarity(
            cosine=1.0 if same else float(by_row[_COSINE, number]) / n,
            cosine_centred=None,
            relative_l2=math.sqrt(difference_sq / base_sq) if base_sq > 0 else None,
            cka=1.0 if same else cka,
        )
        yield site if known else _without_cka(site)


def _without_cka(site: SiteSimilarity) -> SiteSimilarity:
    return SiteSimilarity(site.cosine, None, site.relative_l2, None, undefined=NO_VARIANCE)
