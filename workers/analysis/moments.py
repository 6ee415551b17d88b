"""Additive moments of paired representations, gathered in one streaming pass.

Takes batches of activations of two models at the same positions and keeps only sums, so memory does not grow with the
number of rows and shards merge exactly. It knows nothing of models, texts or files.

Shapes: S sites (layers), N rows (tokens or texts), D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

CHUNK_ROWS = 256
"""Rows whose norms and cosines are computed at a time: so few that they stay in the processor's cache."""

BLOCK_ROWS = 1024
"""Rows whose outer products are summed at a time: so many that reading the sums does not count."""

STRIP = 96
"""Columns of a Gram matrix that are computed at a time."""

SUMS = ("xx", "yy", "xy", "weighted", "squares", "scalars")


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

    def same_as(self, other: Frame) -> bool:
        """Whether sums under both add up."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return self is other or all(torch.equal(one, another) for one, another in pairs)


def _mean_and_scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Site after site, so that one site in float64 is in memory at a time."""
    sites, _, width = rows.shape
    mean, scale = (torch.zeros(sites, width, dtype=torch.float64, device=rows.device) for _ in range(2))
    for site in range(sites):
        exact = rows[site].double()
        mean[site] = exact.mean(0)
        deviation = (exact - mean[site]).square().mean(0).sqrt()
        varies = deviation > torch.finfo(torch.float32).eps * mean[site].abs()
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
        """Adds N rows; `base` and `tuned` are [S, N, D], row by row the same position in both models.

        Raises:
            NotFinite: a row is NaN or infinite; nothing is added then.
        """
        self.add_parts([base], [tuned])

    def add_parts(self, base: list[Tensor], tuned: list[Tensor]) -> None:
        """Adds several sets of rows, as `add` would add them joined, without joining them."""
        for side, parts in (("base", base), ("tuned", tuned)):
            for part in parts:
                _require_finite(side, part)
        width = self.xx.shape[1]
        if self._work is None:
            self._work = self.xx.new_empty(2, BLOCK_ROWS, width)
        centres = torch.stack([self.frame.base, self.frame.tuned], 1)[:, :, None]
        weights = torch.stack([self.frame.base_scale, self.frame.tuned_scale], 1).square()
        for site in range(self.sites):
            block = _Block(self._work, centres[site], weights[site])
            for x, y in zip(base, tuned, strict=True):
                for one, other in zip(x[site].split(CHUNK_ROWS), y[site].split(CHUNK_ROWS), strict=True):
                    if not block.has_room(len(one)):
                        self._add_block(site, block)
                    block.fill(one, other)
            self._add_block(site, block)
        self.n += sum(part.shape[1] for part in base)

    def _add_block(self, site: int, block: _Block) -> None:
        x, y = block.rows[:, : block.filled]
        norms, by_row = block.norms[:, : block.filled], block.by_row[:, : block.filled]
        self.scalars[site] += torch.stack(
            [
                by_row[3].sum(),
                by_row[0].sum(),
                _cosines(by_row[2], by_row[0], by_row[1]).sum(),
                _cosines(by_row[4], norms[1], norms[2]).sum(),
            ]
        )
        self.weighted[site, 0].addmm_(norms, x)
        self.weighted[site, 1].addmm_(norms, y)
        self.squares[site].addmm_(norms, norms.T)
        self.xy[site].addmm_(x.T, y)
        _add_gram(self.xx[site], x)
        _add_gram(self.yy[site], y)
        block.filled = 0

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

    def without(self, part: PairMoments) -> PairMoments:
        """The moments of the rows that are not in `part`, which must be some of these; ValueError as in `merge`."""
        self._require_same_frame(part)
        left = (getattr(self, name) - getattr(part, name) for name in SUMS)
        return PairMoments(self.n - part.n, self.frame, *left)

    def _require_same_frame(self, other: PairMoments) -> None:
        if not self.frame.same_as(other.frame):
            raise ValueError("moments gathered under different frames do not add up")


class _Block:
    """Rows of one site in float64, less the frame's means, and what is summed over each of them.

    rows: [2, BLOCK_ROWS, D], x and y. norms: [5, BLOCK_ROWS], 1, a, b, a', b'. by_row: [5, BLOCK_ROWS], |x|^2, |y|^2,
    x y and |y - x|^2 before the means are taken off, and x y after.
    """

    def __init__(self, rows: Tensor, centres: Tensor, weights: Tensor) -> None:
        self.filled = 0
        self.rows = rows
        self.norms = rows.new_ones(5, rows.shape[1])
        self.by_row = rows.new_empty(5, rows.shape[1])
        self._centres = centres
        self._weights = weights
        self._spare = rows.new_empty(2, CHUNK_ROWS, rows.shape[2])

    def has_room(self, count: int) -> bool:
        return self.filled + count <= self.rows.shape[1]

    def fill(self, base: Tensor, tuned: Tensor) -> None:
        """Takes at most CHUNK_ROWS rows of both models, [N, D]."""
        places = slice(self.filled, self.filled + len(base))
        self.filled += len(base)
        rows, spare = self.rows[:, places], self._spare[:, : len(base)]
        by_row, norms = self.by_row[:, places], self.norms[:, places]
        x, y = rows
        x.copy_(base)
        y.copy_(tuned)
        torch.sum(torch.mul(rows, rows, out=spare), 2, out=by_row[:2])
        torch.sum(torch.mul(x, y, out=spare[0]), 1, out=by_row[2])
        torch.sum(torch.sub(y, x, out=spare[0]).square_(), 1, out=by_row[3])
        rows.sub_(self._centres)
        torch.sum(torch.mul(rows, rows, out=spare), 2, out=norms[1:3])
        torch.mv(spare[0], self._weights[0], out=norms[3])
        torch.mv(spare[1], self._weights[1], out=norms[4])
        torch.sum(torch.mul(x, y, out=spare[0]), 1, out=by_row[4])


def _require_finite(side: str, rows: Tensor) -> None:
    if torch.isfinite(rows.sum()):
        return
    finite = torch.isfinite(rows).flatten(1).all(1)  # the sum alone may have overflowed
    if not bool(finite.all()):
        raise NotFinite(side, int((~finite).nonzero()[0]))


def _add_gram(gram: Tensor, rows: Tensor) -> None:
    """Adds rows^T rows in strips that leave out most of what lies below the diagonal; see `symmetric`."""
    width = rows.shape[1]
    for start in range(0, width, STRIP):
        gram[start : start + STRIP, start:].addmm_(rows[:, start : start + STRIP].T, rows[:, start:])


def symmetric(grams: Tensor) -> Tensor:
    """Sums of outer products, of which the diagonal and what lies above it were kept; [..., D, D] -> [..., D, D]."""
    return grams.triu() + grams.triu(1).mT


def _cosines(products: Tensor, x_sq: Tensor, y_sq: Tensor) -> Tensor:
    """Cosines of rows from their scalar products and squared norms; zero rows as in `row_cosines`."""
    norms = (x_sq * y_sq).sqrt_()
    cosines = products / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return torch.where((x_sq == 0) & (y_sq == 0), 1.0, cosines).clamp_(-1.0, 1.0)


def row_cosines(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of each pair of rows, in [-1, 1]; x, y: [..., D] -> [...].

    Two zero rows count as equal (1); a zero row against a nonzero one as orthogonal (0).
    """
    return _cosines((x * y).sum(-1), x.square().sum(-1), y.square().sum(-1))
