"""Strong directions of a tuned matrix that the base does not have, held against a full decomposition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workers.analysis.intruders import LEAST_COSINE, STRONGEST, WIDEST, intruders, is_decomposed


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    """With singular values that fall, as weights have."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(side, side, generator=generator))[0] for side in (rows, columns))
    count = min(rows, columns)
    values = 10.0 / torch.arange(1, count + 1)
    found: Tensor = left[:, :count] * values @ right[:, :count].T
    return found


def exact(base: Tensor, tuned: Tensor) -> int:
    one, other = (torch.linalg.svd(side.double(), full_matrices=False).U for side in (base, tuned))
    return int(((one.T @ other[:, :STRONGEST]).abs().max(0).values < LEAST_COSINE).sum())


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (40, 40)])
@pytest.mark.parametrize("planted", [0, 1, 3])
def test_directions_that_were_added_are_counted(shape: tuple[int, int], planted: int) -> None:
    base = matrix(*shape)
    generator = torch.Generator().manual_seed(7)
    change = torch.zeros(shape)
    for number in range(planted):
        left, right = (torch.randn(side, generator=generator) for side in shape)
        change += (20.0 + 3 * number) * torch.outer(left / left.norm(), right / right.norm())
    found = intruders(base, base + change)
    assert found == exact(base, base + change)
    assert found == planted


@pytest.mark.parametrize("seed", range(4))
def test_of_any_change_the_count_is_that_of_a_full_decomposition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = matrix(50, 30, seed)
    tuned = base + 0.3 * torch.randn(50, 30, generator=generator)
    assert intruders(base, tuned) == exact(base, tuned)


def test_the_same_matrix_and_a_rounded_one_have_none() -> None:
    base = matrix(60, 40)
    assert intruders(base, base) == 0
    assert intruders(base, base.bfloat16().float()) == 0
    assert intruders(base, 1.1 * base) == 0  # stronger, and where it was


def test_vectors_and_wide_matrices_are_left_out() -> None:
    assert is_decomposed(torch.zeros(20, 30))
    for shape in ((20,), (STRONGEST, 30), (WIDEST + 1, WIDEST + 1)):
        assert not is_decomposed(torch.zeros(shape))
