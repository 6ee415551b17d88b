"""The loops over single numbers, each in one pass through memory: taking rows, and what is summed over each of a pair.

Compiled, since the same in whole-array operations reads and writes every row eight times, which costs a third of the
outer products that follow.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BY_ROW = 5
"""|x|^2, |y|^2, cos(x, y) and |y - x|^2 of rows as they came, and cos(x, y) after the centres were taken off."""

NORMS = 5
"""1, a, b, a', b': squared norms after the centres were taken off, and after scaling as well."""


@njit(parallel=True, fastmath={"reassoc", "contract"}, cache=True)
def centre_and_sum(
    base: NDArray[Any], tuned: NDArray[Any], centres: F64, weights: F64, rows: F64, norms: F64, by_row: F64
) -> None:
    """Writes the rows of both models less their centres, and what is summed over each row.

    The sums of a row are made by one thread in one order: they do not depend on how many threads there are.

    Args:
        base, tuned: [N, D], float32 or float64.
        centres, weights: [2, D], of the base model, then of the tuned one: what is taken off, and the squared scales.
        rows: [2, N, D], written: x, then y.
        norms: [NORMS, N], written. by_row: [BY_ROW, N], written.
    """
    for row in prange(base.shape[0]):
        x_sq = y_sq = xy = difference_sq = a = b = a_scaled = b_scaled = xy_centred = 0.0
        for column in range(base.shape[1]):
            x, y = np.float64(base[row, column]), np.float64(tuned[row, column])
            x_sq += x * x
            y_sq += y * y
            xy += x * y
            difference_sq += (y - x) * (y - x)
            x -= centres[0, column]
            y -= centres[1, column]
            rows[0, row, column] = x
            rows[1, row, column] = y
            a += x * x
            b += y * y
            a_scaled += x * x * weights[0, column]
            b_scaled += y * y * weights[1, column]
            xy_centred += x * y
        norms[0, row] = 1.0
        norms[1, row], norms[2, row], norms[3, row], norms[4, row] = a, b, a_scaled, b_scaled
        # two zero rows are equal (1), a zero row and another one orthogonal (0)
        cosine = xy / math.sqrt(x_sq * y_sq) if x_sq > 0 and y_sq > 0 else 1.0 if x_sq == y_sq else 0.0
        cosine_centred = xy_centred / math.sqrt(a * b) if a > 0 and b > 0 else 1.0 if a == b else 0.0
        by_row[0, row], by_row[1, row], by_row[3, row] = x_sq, y_sq, difference_sq
        by_row[2, row], by_row[4, row] = min(1.0, max(-1.0, cosine)), min(1.0, max(-1.0, cosine_centred))


@njit(parallel=True, cache=True)
def take_rows(
    states: F32, real: NDArray[np.bool_], position: NDArray[np.int64], rows: F32, chosen: F32, means: F32
) -> None:
    """Copies the states of real tokens, text after text, and that of one token of each text; takes each text's mean.

    Args:
        states: [B, T, D]. real: [B, T], which tokens count. position: [B], the one token.
        rows: [N, D], written, for the N tokens that count. chosen: [B, D], written.
        means: [B, D], written; 0 for a text without a token that counts.
    """
    texts, length, width = states.shape
    starts = np.zeros(texts + 1, dtype=np.int64)
    for text in range(texts):
        starts[text + 1] = starts[text] + real[text].sum()
    for text in prange(texts):
        total = np.zeros(width)
        place = starts[text]
        for token in range(length):
            if real[text, token]:
                for column in range(width):
                    value = states[text, token, column]
                    rows[place, column] = value
                    total[column] += value
                place += 1
        for column in range(width):
            chosen[text, column] = states[text, position[text], column]
            means[text, column] = total[column] / max(1, place - starts[text])
