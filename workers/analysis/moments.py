"""Additive moments of paired representations, gathered in one streaming pass.

Takes batches of activations of two models at the same positions and keeps only sums, so memory does not grow with the
number of rows and shards merge exactly. It knows nothing of models, texts or files.

Shapes: S sites (layers), N rows (tokens or texts), D hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


class NotFinite(ValueError):
    """An activation is NaN or infinite; `site` is the index of the first layer where it happens."""

    def __init__(self, side: str, site: int) -> None:
        super().__init__(f"the activations of the {side} model are NaN or infinite at layer {site}")
        self.side = side
        self.site = site


@dataclass(frozen=True)
class Centre:
    """The provisional means that rows are shifted by before they are summed. Moments merge only under one centre.

    base, tuned: [S, D] float64. The nearer they are to the true means, the less the sums cancel; centred cosine is
    defined with them (see `docs/numbers.md`).
    """

    base: Tensor
    tuned: Tensor

    @staticmethod
    def of(base: Tensor, tuned: Tensor) -> Centre:
        """The mean over the rows of `base` and `tuned`, each [S, N, D] with N >= 1."""
        return Centre(base.double().mean(dim=1), tuned.double().mean(dim=1))


@dataclass
class PairMoments:
    """Sums over N rows of X (base) and Y (tuned), both shifted by the centre, for S sites at once; all float64.

    With x, y a shifted row, a = |x|^2 and b = |y|^2, the fields are plain sums over rows of what they are named after:
    `sum_x` of x, `xy` of the outer product x y^T, `a_y` of a*y, `ab` of a*b. `diff_sq` and `base_sq` sum |y - x|^2 and
    |x|^2 *before* shifting; `cosine` and `cosine_centred` sum the rows' cosines before and after shifting.
    """

    n: int
    centre: Centre
    sum_x: Tensor
    sum_y: Tensor
    xx: Tensor
    yy: Tensor
    xy: Tensor
    a_x: Tensor
    a_y: Tensor
    b_x: Tensor
    b_y: Tensor
    aa: Tensor
    ab: Tensor
    bb: Tensor
    diff_sq: Tensor
    base_sq: Tensor
    cosine: Tensor
    cosine_centred: Tensor

    @staticmethod
    def zeros(centre: Centre) -> PairMoments:
        """Moments of no rows at all."""
        sites, width = centre.base.shape
        device = centre.base.device

        def zero(*shape: int) -> Tensor:
            return torch.zeros(sites, *shape, dtype=torch.float64, device=device)

        vectors = {name: zero(width) for name in ("sum_x", "sum_y", "a_x", "a_y", "b_x", "b_y")}
        matrices = {name: zero(width, width) for name in ("xx", "yy", "xy")}
        scalars = {name: zero() for name in ("aa", "ab", "bb", "diff_sq", "base_sq", "cosine", "cosine_centred")}
        return PairMoments(n=0, centre=centre, **vectors, **matrices, **scalars)

    def add(self, base: Tensor, tuned: Tensor) -> None:
        """Adds N rows; `base` and `tuned` are [S, N, D], row by row the same position in both models.

        Raises:
            NotFinite: a row is NaN or infinite; nothing is added then.
        """
        x_raw, y_raw = base.double(), tuned.double()
        for side, rows in (("base", x_raw), ("tuned", y_raw)):
            finite = torch.isfinite(rows.sum(dim=(1, 2)))
            if not bool(finite.all()):
                raise NotFinite(side, int((~finite).nonzero()[0]))
        x = x_raw - self.centre.base[:, None]
        y = y_raw - self.centre.tuned[:, None]
        a, b = x.square().sum(-1), y.square().sum(-1)
        self.n += x.shape[1]
        self.sum_x += x.sum(1)
        self.sum_y += y.sum(1)
        x_t = x.transpose(1, 2)
        self.xx += x_t @ x
        self.yy += y.transpose(1, 2) @ y
        self.xy += x_t @ y
        self.a_x += torch.einsum("sn,snd->sd", a, x)
        self.a_y += torch.einsum("sn,snd->sd", a, y)
        self.b_x += torch.einsum("sn,snd->sd", b, x)
        self.b_y += torch.einsum("sn,snd->sd", b, y)
        self.aa += a.square().sum(-1)
        self.ab += (a * b).sum(-1)
        self.bb += b.square().sum(-1)
        self.diff_sq += (y_raw - x_raw).square().sum(dim=(1, 2))
        self.base_sq += x_raw.square().sum(dim=(1, 2))
        self.cosine += row_cosines(x_raw, y_raw).sum(-1)
        self.cosine_centred += row_cosines(x, y).sum(-1)

    def merge(self, other: PairMoments) -> PairMoments:
        """The moments of the rows of both.

        Raises:
            ValueError: the two were gathered under different centres, so their sums do not add up to anything.
        """
        self._require_same_centre(other)
        added = {name: value + getattr(other, name) for name, value in self.sums().items()}
        return PairMoments(centre=self.centre, **added)

    def without(self, part: PairMoments) -> PairMoments:
        """The moments of the rows that are not in `part`, which must be some of these; ValueError as in `merge`."""
        self._require_same_centre(part)
        left = {name: value - getattr(part, name) for name, value in self.sums().items()}
        return PairMoments(centre=self.centre, **left)

    def sums(self) -> dict[str, Any]:
        """Every field but the centre, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "centre"}

    def _require_same_centre(self, other: PairMoments) -> None:
        for one, another in ((self.centre.base, other.centre.base), (self.centre.tuned, other.centre.tuned)):
            if one is not another and not torch.equal(one, another):
                raise ValueError("moments gathered under different centres do not add up")


def row_cosines(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of each pair of rows, in [-1, 1]; x, y: [..., D] -> [...].

    Two zero rows count as equal (1); a zero row against a nonzero one as orthogonal (0).
    """
    x_norm, y_norm = x.norm(dim=-1), y.norm(dim=-1)
    product = x_norm * y_norm
    cosines = (x * y).sum(-1) / product.clamp_min(torch.finfo(x.dtype).tiny)
    both_zero = (x_norm == 0) & (y_norm == 0)
    return torch.where(both_zero, torch.ones_like(cosines), cosines).clamp(-1.0, 1.0)
