"""Additive moments of paired representations, gathered in one streaming pass.

Takes batches of activations of two models at the same positions and keeps only sums, so memory does not grow with the
number of rows and shards merge exactly. It knows nothing of models, texts or files.

Shapes: S sites (layers), N rows (tokens or texts), D hidden width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from workers.analysis.rowsums import BY_ROW, NORMS, centre_and_sum

BLOCK_ROWS = 2048
"""Rows whose outer products are summed at a time: so many that reading the sums does not count."""

STRIP, STRIPS = 96, 8
"""Columns of a Gram matrix that are computed at a time: so many, or an eighth of them, whatever is more."""

SMALL_SUMS = ("weighted", "squares", "scalars")
SUMS = ("xx", "yy", "xy", *SMALL_SUMS)


class NotFinite(ValueError):
    """An activation is NaN or infinite; `site` is the index of the first layer where it happens."""

    def __init__(self, side: str, site: int) -> None:
        super().__init__(f"the activations of the {side} model are NaN or infinite at layer {site}")
        self.side = side
        self.site = site


@dataclass(frozen=True)
class Frame:
    """What rows are shifted by and measured in before they are summed. Moments merge only under one frame.

    base, tuned: [S, D] float64, the provisional means. The nearer they are to the true means, the less the sums cancel;
    centred cosine is defined with them (see `docs/numbers.md`).
    base_scale, tuned_scale: [S, D] float64, one over each feature's standard deviation; 0 where it does not vary.
    Standardised CKA is defined with them.
    """

    base: Tensor
    tuned: Tensor
    base_scale: Tensor
    tuned_scale: Tensor

    @staticmethod
    def of(base: Tensor, tuned: Tensor) -> Frame:
        """Means and deviations of the rows of `base` and `tuned`, each [S, N, D] with N >= 1."""
        (base_mean, base_scale), (tuned_mean, tuned_scale) = _mean_and_scale(base), _mean_and_scale(tuned)
        return Frame(base_mean, tuned_mean, base_scale, tuned_scale)

    def spreads(self) -> tuple[Tensor, Tensor]:
        """Mean squared distance of the rows from their mean, of each model; [S]."""
        base, tuned = (
            torch.where(scale > 0, scale.square().reciprocal(), 0.0).sum(1)
            for scale in (self.base_scale, self.tuned_scale)
        )
        return base, tuned

    def same_as(self, other: Frame) -> bool:
        """Whether sums under both add up."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return self is other or all(torch.equal(one, another) for one, another in pairs)


def _mean_and_scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Site after site, so that one site in float64 is in memory at a time.

    A feature that varies by less than float32 resolves, of its mean or of the site's typical deviation, does not vary:
    trained models have dead features of 1e-32, which scaling would make as large as any other.
    """
    sites, _, width = rows.shape
    mean, scale = (torch.zeros(sites, width, dtype=torch.float64, device=rows.device) for _ in range(2))
    for site in range(sites):
        exact = rows[site].double()
        mean[site] = exact.mean(0)
        deviation = (exact - mean[site]).square().mean(0).sqrt()
        typical = deviation.square().mean().sqrt()
        varies = deviation > torch.finfo(torch.float32).eps * mean[site].abs().maximum(typical)
        scale[site] = torch.where(varies, 1 / deviation, 0.0)
    return mean, scale


@dataclass
class PairMoments:
    """Sums over `n` rows of x (base) and y (tuned), both less the frame's means, for S sites at once; all float64.

    With a = |x|^2, b = |y|^2, and a', b' the same of rows multiplied by the frame's scales:

    xx, yy, xy: [S, D, D], of outer products; of the first two, the part above the diagonal (see `symmetric`).
    weighted: [S, 2, 5, D], of x, then of y, times 1, a, b, a', b'.
    squares: [S, 5, 5], of the outer products of (1, a, b, a', b').
    scalars: [S, 4], of |y - x|^2, |x|^2, and the cosine of x and y, all three *before* the means are taken off; and of
        the cosine after.
    """

    n: int
    frame: Frame
    xx: Tensor
    yy: Tensor
    xy: Tensor
    weighted: Tensor
    squares: Tensor
    scalars: Tensor
    _work: Tensor | None = field(default=None, repr=False, compare=False)

    @staticmethod
    def zeros(frame: Frame) -> PairMoments:
        """Moments of no rows at all."""
        sites, width = frame.base.shape
        shapes = ((width, width), (width, width), (width, width), (2, 5, width), (5, 5), (4,))
        sums = (torch.zeros(sites, *shape, dtype=torch.float64, device=frame.base.device) for shape in shapes)
        return PairMoments(0, frame, *sums)

    @property
    def sites(self) -> int:
        """S."""
        return len(self.scalars)

    def add(self, base: Tensor, tuned: Tensor) -> None:
        """Adds N rows; `base` and `tuned` are [S, N, D] in the processor's memory, row by row the same position.

        Raises:
            NotFinite: a row is NaN or infinite; the moments are of no use then.
        """
        if self._work is None:
            self._work = self.xx.new_empty(BLOCK_ROWS * (2 * self.xx.shape[1] + NORMS + BY_ROW))
        centres = torch.stack([self.frame.base, self.frame.tuned], 1)
        weights = torch.stack([self.frame.base_scale, self.frame.tuned_scale], 1).square()
        for site in range(self.sites):
            for x, y in zip(base[site].split(BLOCK_ROWS), tuned[site].split(BLOCK_ROWS), strict=True):
                self._add_block(site, _Block.of(x, y, centres[site], weights[site], self._work))
        self.n += base.shape[1]

    def _add_block(self, site: int, block: _Block) -> None:
        (x, y), norms, by_row = block.rows, block.norms, block.by_row
        sums = by_row.sum(1)
        for side, total in zip(("base", "tuned"), sums[:2].tolist(), strict=True):
            if not math.isfinite(total):
                raise NotFinite(side, site)
        self.scalars[site] += sums[[3, 0, 2, 4]]
        self.weighted[site].baddbmm_(norms.expand(2, *norms.shape), block.rows)
        self.squares[site].addmm_(norms, norms.T)
        self.xy[site].addmm_(x.T, y)
        add_gram(self.xx[site], x)
        add_gram(self.yy[site], y)

    def clear(self) -> None:
        """Makes these the moments of no rows again."""
        self.n = 0
        for name in SUMS:
            getattr(self, name).zero_()

    def merge(self, other: PairMoments) -> None:
        """Adds the moments of other rows.

        Raises:
            ValueError: the two were gathered under different frames, so their sums do not add up to anything.
        """
        self._require_same_frame(other)
        self.n += other.n
        for name in SUMS:
            getattr(self, name).add_(getattr(other, name))

    def joined(self, other: PairMoments) -> PairMoments:
        """The moments of these rows and of others, in memory of their own; ValueError as in `merge`."""
        self._require_same_frame(other)
        both = (getattr(self, name) + getattr(other, name) for name in SUMS)
        return PairMoments(self.n + other.n, self.frame, *both)

    def without(self, part: PairMoments) -> PairMoments:
        """The moments of the rows that are not in `part`, which must be some of these; ValueError as in `merge`."""
        self._require_same_frame(part)
        left = (getattr(self, name) - getattr(part, name) for name in SUMS)
        return PairMoments(self.n - part.n, self.frame, *left)

    def _require_same_frame(self, other: PairMoments) -> None:
        if not self.frame.same_as(other.frame):
            raise ValueError("moments gathered with different frames cannot be added")


class _Block(NamedTuple):
    """Rows of one site in float64, and what is summed over each; see `workers.analysis.rowsums`.

    rows: [2, N, D], x and y less the frame's means. norms: [NORMS, N]. by_row: [BY_ROW, N].
    """

    rows: Tensor
    norms: Tensor
    by_row: Tensor

    @staticmethod
    def of(base: Tensor, tuned: Tensor, centres: Tensor, weights: Tensor, memory: Tensor) -> _Block:
        """Of N rows of one site, [N, D] each, in memory for as many numbers or more."""
        count, width = base.shape
        sizes = (2 * count * width, NORMS * count, BY_ROW * count)
        rows, norms, by_row = memory[: sum(sizes)].split(sizes)
        block = _Block(rows.view(2, count, width), norms.view(NORMS, count), by_row.view(BY_ROW, count))
        centre_and_sum(
            *(one.contiguous().numpy() for one in (base, tuned, centres, weights)), *map(torch.Tensor.numpy, block)
        )
        return block


def add_gram(gram: Tensor, rows: Tensor) -> None:
    """Adds rows^T rows in strips that leave out most of what lies below the diagonal; see `symmetric`."""
    width = rows.shape[1]
    strip = max(STRIP, width // STRIPS)
    for start in range(0, width, strip):
        gram[start : start + strip, start:].addmm_(rows[:, start : start + strip].T, rows[:, start:])


def symmetric(grams: Tensor) -> Tensor:
    """Sums of outer products, of which the diagonal and what lies above it were kept; [..., D, D] -> [..., D, D]."""
    return grams.triu() + grams.triu(1).mT


def row_cosines(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of each pair of rows, in [-1, 1]; x, y: [..., D] -> [...].

    Two zero rows count as equal (1); a zero row against a nonzero one as orthogonal (0).
    """
    x_sq, y_sq = x.square().sum(-1), y.square().sum(-1)
    norms = (x_sq * y_sq).sqrt()
    cosines = (x * y).sum(-1) / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return torch.where((x_sq == 0) & (y_sq == 0), 1.0, cosines).clamp(-1.0, 1.0)
