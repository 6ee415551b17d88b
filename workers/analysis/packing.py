"""The D x D sums of a group in a third of their room: float32, without what two of them have below their diagonals.

x's sums are kept, and what y's and the mixed ones differ from them: so the rounding of nearly equal models is as nearly
equal, and stays far below what they differ by. Compiled, since whole-array operations would write each sum ten times.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class Packed(NamedTuple):
    """float32. grams: [S, D, D], x's sums on and above the diagonal, below it y's less x's, transposed.

    yy_diagonal: [S, D], y's less x's. xy: [S, D, D], the mixed sums less x's.
    """

    grams: Tensor
    yy_diagonal: Tensor
    xy: Tensor


def packed(xx: Tensor, yy: Tensor, xy: Tensor) -> Packed:
    """Sums of outer products, [S, D, D] float64; of `xx` and `yy` only the diagonal and what lies above it is read."""
    grams, mixed = torch.empty_like(xx, dtype=torch.float32), torch.empty_like(xy, dtype=torch.float32)
    diagonal = torch.empty(xx.shape[:2])
    _pack(*(one.numpy() for one in (xx, yy, xy, grams, diagonal, mixed)))
    return Packed(grams, diagonal, mixed)


def unpacked(found: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """`xx`, `yy`, `xy` again, the first two with zeros below their diagonals."""
    xx, yy = (torch.zeros_like(found.grams, dtype=torch.float64) for _ in range(2))
    xy = torch.empty_like(xx)
    _unpack(*(one.numpy() for one in (*found, xx, yy, xy)))
    return xx, yy, xy


@njit(parallel=True, cache=True)
def _pack(xx: F64, yy: F64, xy: F64, grams: F32, diagonal: F32, mixed: F32) -> None:
    sites, width, _ = xx.shape
    for place in prange(sites * width):
        site, row = place // width, place % width
        diagonal[site, row] = yy[site, row, row] - xx[site, row, row]
        for column in range(row):
            grams[site, row, column] = yy[site, column, row] - xx[site, column, row]
            mixed[site, row, column] = xy[site, row, column] - xx[site, column, row]
        for column in range(row, width):
            grams[site, row, column] = xx[site, row, column]
            mixed[site, row, column] = xy[site, row, column] - xx[site, row, column]


@njit(parallel=True, cache=True)
def _unpack(grams: F32, diagonal: F32, mixed: F32, xx: F64, yy: F64, xy: F64) -> None:
    sites, width, _ = grams.shape
    for place in prange(sites * width):
        site, row = place // width, place % width
        yy[site, row, row] = np.float64(grams[site, row, row]) + diagonal[site, row]
        for column in range(row):
            xy[site, row, column] = np.float64(grams[site, column, row]) + mixed[site, row, column]
        for column in range(row, width):
            of_x = np.float64(grams[site, row, column])
            xx[site, row, column] = of_x
            xy[site, row, column] = of_x + mixed[site, row, column]
            if column > row:
                yy[site, row, column] = of_x + grams[site, column, row]
