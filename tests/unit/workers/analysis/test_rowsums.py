"""The compiled loops beside the same in plain torch, which is the judge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from workers.analysis.rowsums import BY_ROW, NORMS, centre_and_sum, take_rows

ROWS, WIDTH = 17, 5


def summed(base: Tensor, tuned: Tensor, centres: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, norms, by_row = (
        np.empty(shape) for shape in ((2, len(base), base.shape[1]), (NORMS, len(base)), (BY_ROW, len(base)))
    )
    centre_and_sum(base.numpy(), tuned.numpy(), centres.numpy(), weights.numpy(), rows, norms, by_row)
    return torch.from_numpy(rows), torch.from_numpy(norms), torch.from_numpy(by_row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_centred_rows_and_sums_are_those_of_whole_arrays(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    base, tuned = (torch.randn(ROWS, WIDTH, generator=generator, dtype=dtype) for _ in range(2))
    centres, weights = (torch.rand(2, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    rows, norms, by_row = summed(base, tuned, centres, weights)
    x, y = base.double() - centres[0], tuned.double() - centres[1]
    torch.testing.assert_close(rows, torch.stack([x, y]))
    scaled = [(x.square() * weights[0]).sum(1), (y.square() * weights[1]).sum(1)]
    torch.testing.assert_close(norms, torch.stack([torch.ones(ROWS), x.square().sum(1), y.square().sum(1), *scaled]))
    one, other = base.double(), tuned.double()
    cosines = [torch.cosine_similarity(a, b, dim=1) for a, b in ((one, other), (x, y))]
    squares = [one.square().sum(1), other.square().sum(1), (other - one).square().sum(1)]
    torch.testing.assert_close(by_row, torch.stack([squares[0], squares[1], cosines[0], squares[2], cosines[1]]))


def test_two_rows_of_zeros_are_equal_and_one_is_orthogonal_to_any_other() -> None:
    zero, some = torch.zeros(1, WIDTH), torch.ones(1, WIDTH)
    none = torch.zeros(2, WIDTH, dtype=torch.float64)
    for base, tuned, cosine in ((zero, zero, 1.0), (zero, some, 0.0), (some, zero, 0.0), (some, some, 1.0)):
        by_row = summed(base, tuned, none, none + 1)[2]
        assert (float(by_row[2]), float(by_row[4])) == pytest.approx((cosine, cosine))


def test_only_tokens_that_count_are_taken_text_after_text() -> None:
    states = torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)
    position = torch.tensor([2, 0, 3])
    rows, chosen, means = torch.empty(5, WIDTH), torch.empty(3, WIDTH), torch.empty(3, WIDTH)
    take_rows(*(one.numpy() for one in (states, real, position, rows, chosen, means)))
    assert torch.equal(rows, states[real])
    assert torch.equal(chosen, states[torch.arange(3), position])
    expected = torch.stack([states[text][real[text]].sum(0) / max(1, int(real[text].sum())) for text in range(3)])
    torch.testing.assert_close(means, expected)
    assert means[1].tolist() == [0.0] * WIDTH
