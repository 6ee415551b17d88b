from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr
from torch import Tensor

from workers.analysis.geometry import NEIGHBOURS, Geometry, PairDistances


def pair(texts: int, noise: float, seed: int = 0, width: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(texts, width, generator=generator, dtype=torch.float64)
    return base, base + noise * torch.randn(texts, width, generator=generator, dtype=torch.float64)


def naive(base: Tensor, tuned: Tensor, kept: Tensor) -> Geometry:
    """From the definitions, with scipy and sets: neighbours among all texts, less those left out."""
    remaining = set(kept.nonzero()[:, 0].tolist())
    near = []
    for one in (pdist(rows.numpy()) for rows in (base, tuned)):
        matrix = squareform(one)
        np.fill_diagonal(matrix, np.inf)
        near.append([set(np.argsort(row, kind="stable")[:NEIGHBOURS]) for row in matrix])
    sets = [(near[0][row] & remaining, near[1][row] & remaining) for row in sorted(remaining)]
    shared = [len(one & other) / len(one | other) for one, other in sets if one | other]
    among_kept = (pdist(rows[kept].numpy()) for rows in (base, tuned))
    return Geometry(float(spearmanr(*among_kept).statistic), float(np.mean(shared)))


@settings(max_examples=30, deadline=None)
@given(texts=st.integers(NEIGHBOURS + 2, 60), noise=st.floats(0, 3), left_out=st.integers(2, 9))
def test_it_agrees_with_the_definitions_with_and_without_a_group(texts: int, noise: float, left_out: int) -> None:
    base, tuned = pair(texts, noise)
    distances = PairDistances(base, tuned)
    for kept in (torch.ones(texts, dtype=torch.bool), torch.arange(texts) % left_out != 0):
        if int(kept.sum()) < NEIGHBOURS + 2:
            continue
        found, expected = distances.geometry(kept), naive(base, tuned, kept)
        assert found.rsa == pytest.approx(expected.rsa, abs=1e-9)
        assert found.knn_jaccard == pytest.approx(expected.knn_jaccard, abs=1e-12)


def test_texts_in_one_place_share_their_mean_rank() -> None:
    """Six texts stand in pairs: equal distances must not be ordered by chance."""
    base, tuned = pair(20, 0.5)
    base[1::2] = base[::2]
    found = PairDistances(base, tuned).geometry()
    assert found.rsa == pytest.approx(naive(base, tuned, torch.ones(20, dtype=torch.bool)).rsa, abs=1e-9)


def test_rotation_scale_and_shift_change_nothing() -> None:
    base, _ = pair(40, 0)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    found = PairDistances(base, 3 * base @ rotation + 5).geometry()
    assert found.knn_jaccard == 1.0
    assert found.rsa == pytest.approx(1.0)


def test_unrelated_models_are_near_the_level_of_chance() -> None:
    """Ten of 199 others at random: a Jaccard index of about 10 / (2 * 199 - 10)."""
    one, other = pair(200, 0, seed=1, width=30)[0], pair(200, 0, seed=2, width=30)[0]
    found = PairDistances(one, other).geometry()
    assert found.rsa == pytest.approx(0, abs=0.05)
    assert found.knn_jaccard == pytest.approx(0.026, abs=0.01)


@pytest.mark.parametrize("rows", [torch.ones(30, 4), torch.randn(NEIGHBOURS + 1, 4)])
def test_too_few_texts_or_all_in_one_place_have_no_geometry(rows: Tensor) -> None:
    assert PairDistances(rows, rows).geometry() == Geometry(None, None)
