"""Fewer rows than features: the same rows in as many directions as they have, so that nothing is D x D.

Every measure but standardised CKA depends on inner products of rows alone, which a common rotation leaves as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.analysis.moments import Frame
from workers.analysis.streams import Rows


def few(rows: int, width: int) -> bool:
    """Whether so many rows of both models lie in fewer directions than half of their features."""
    return 4 * rows <= width


def rotated(rows: Rows) -> Rows:
    """Rows [1, N, D] in an orthonormal basis of what those of both models span: [1, N, 2 N], of the same products.

    Raises:
        ValueError: there are more rows than features for them.
    """
    base, tuned = rows.base[0].double(), rows.tuned[0].double()
    if 2 * len(base) > base.shape[1]:
        raise ValueError(f"{len(base)} rows of two models do not lie in less than {base.shape[1]} directions")
    basis = torch.linalg.qr(torch.cat([base, tuned]).T).Q
    turned = (base @ basis)[None]
    return Rows(turned, turned if torch.equal(base, tuned) else (tuned @ basis)[None])


def standardised(rows: Rows, frame: Frame) -> Rows:
    """Rows [1, N, D] less the frame's means, every feature in units of its deviation."""

    def scaled(one: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        return (one.double() - mean[:, None]) * scale[:, None]

    return Rows(scaled(rows.base, frame.base, frame.base_scale), scaled(rows.tuned, frame.tuned, frame.tuned_scale))
