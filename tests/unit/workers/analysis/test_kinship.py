"""Kinship of tuned models: against naive formulas and known answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workers.analysis.kinship import RANK, kinship
from workers.analysis.row_similarity import cka_of_rows
from workers.analysis.streams import Rows

N, D = 300, 24


def groups() -> Tensor:
    return torch.arange(N) // 30


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cka_is_that_of_two_models_in_an_analysis() -> None:
    base, tuned = drawn(N, D), drawn(3, N, D, seed=1)
    tuned[1] = tuned[0] + 0.5 * tuned[1]
    found = kinship(base, tuned, groups()).cka.value
    for one, other in ((0, 1), (0, 2), (1, 2)):
        site = cka_of_rows(Rows(tuned[one][None], tuned[other][None]))
        assert site.cka is not None
        assert float(found[one, other]) == pytest.approx(site.cka, abs=1e-6)
    assert found.diagonal() == pytest.approx(torch.ones(3).double())


def test_models_that_changed_alike_have_a_change_cosine_of_one_and_opposite_ones_of_minus_one() -> None:
    base, change = drawn(N, D), drawn(N, D, seed=1)
    found = kinship(base, torch.stack([base + change, base + 3 * change, base - change]), groups())
    assert found.change_cosine.value == pytest.approx(
        torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]]).double(), abs=1e-5
    )


def test_a_shift_of_all_tokens_is_no_change_in_common() -> None:
    base = drawn(N, D)
    tuned = torch.stack([base + 5 + 0.1 * drawn(N, D, seed=1), base + 5 + 0.1 * drawn(N, D, seed=2)])
    assert abs(float(kinship(base, tuned, groups()).change_cosine.value[0, 1])) < 0.1


def test_subspaces_overlap_as_much_as_directions_are_shared() -> None:
    base = drawn(N, D)
    directions = torch.linalg.qr(drawn(D, D, seed=3))[0].T
    shared = RANK // 2
    one = drawn(N, RANK, seed=4) @ directions[:RANK]
    other = drawn(N, RANK, seed=5) @ directions[RANK - shared : 2 * RANK - shared]
    found = kinship(base, torch.stack([base + one, base + other]), groups())
    assert float(found.overlap[0, 1]) == pytest.approx(shared / RANK, abs=1e-6)
    assert float(found.angle[0, 1]) == pytest.approx(0.0, abs=0.1)
    assert found.overlap.diagonal() == pytest.approx(torch.ones(2).double(), abs=1e-6)


def test_orthogonal_changes_do_not_overlap() -> None:
    base = drawn(N, D)
    directions = torch.linalg.qr(drawn(D, D, seed=3))[0].T
    changes = [drawn(N, RANK, seed=4 + part) @ directions[part * RANK : (part + 1) * RANK] for part in range(2)]
    found = kinship(base, torch.stack([base + change for change in changes]), groups())
    assert float(found.overlap[0, 1]) == pytest.approx(0.0, abs=1e-6)
    assert float(found.angle[0, 1]) == pytest.approx(90.0, abs=0.1)


def test_a_model_that_did_not_change_has_no_number_and_spoils_none() -> None:
    base = drawn(N, D)
    found = kinship(base, torch.stack([base, base + drawn(N, D, seed=1), base + drawn(N, D, seed=2)]), groups())
    for matrix in (found.change_cosine.value, found.overlap, found.angle):
        assert matrix[0].isnan().all()
        assert matrix[1:, 1:].isfinite().all()
    assert found.cka.value.isfinite().all()


def test_intervals_hold_the_value_that_more_texts_give() -> None:
    held, runs = 0, 60
    for seed in range(runs):
        base, common = drawn(N, D, seed=4 * seed), drawn(N, D, seed=4 * seed + 1)
        tuned = torch.stack([base + common + drawn(N, D, seed=4 * seed + part) for part in (2, 3)])
        found = kinship(base, tuned, groups()).change_cosine
        held += float(found.low[0, 1]) <= 0.5 <= float(found.high[0, 1])
    assert held / runs >= 0.88


def test_few_groups_give_no_interval_and_few_rows_no_number() -> None:
    base, tuned = drawn(N, D), drawn(2, N, D, seed=1)
    assert kinship(base, tuned, torch.arange(N) // 100).cka.low.isnan().all()
    with pytest.raises(ValueError, match="19 rows are too few"):
        kinship(base[:19], tuned[:, :19], groups()[:19])
