"""The tree of members, and the matrices as the report has them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from workers.studies.shared_rows import SharedRows
from workers.studies.similarity import similarity_of, tree_of

NAN = math.nan


def test_members_that_change_alike_are_joined_first_and_at_their_mean_distance() -> None:
    one = torch.tensor([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]], dtype=torch.float64)
    other = torch.tensor([[1, 0.7, 0.3], [0.7, 1, 0.0], [0.3, 0.0, 1]], dtype=torch.float64)
    first, second = tree_of([one, other])
    assert {first.left, first.right} == {0, 1}
    assert first.distance == pytest.approx(0.2)
    assert {second.left, second.right} == {2, 3}
    assert second.distance == pytest.approx(1 - (0.2 + 0.1) / 2)


def test_layers_that_one_of_two_left_as_they_were_do_not_count_for_them() -> None:
    frozen = torch.tensor([[NAN, NAN], [NAN, 1]], dtype=torch.float64)
    moved = torch.tensor([[1, 0.6], [0.6, 1]], dtype=torch.float64)
    (join,) = tree_of([frozen, moved])
    assert join.distance == pytest.approx(0.4)
    assert tree_of([frozen]) == []


def test_the_matrices_are_in_the_order_of_the_members(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {str(layer): torch.randn(60, 16, generator=generator) for layer in range(2)}
    change = torch.randn(60, 16, generator=generator)
    tuned = [
        {"0": base["0"], "1": base["1"] + change},
        {"0": base["0"], "1": base["1"] + 2 * change},
        {"0": base["0"], "1": base["1"] - change},
    ]
    save_file(base, tmp_path / "base.safetensors")
    for number, rows in enumerate(tuned):
        save_file(rows, tmp_path / f"member-{number}.safetensors")
    groups = torch.arange(50) // 5
    found = similarity_of(["a", "b", "c"], SharedRows(10, 2, groups, torch.arange(50), tmp_path, 3))
    assert (found.members, found.tokens, found.rank, found.chance_overlap) == (["a", "b", "c"], 50, 8, 0.5)
    assert found.layers[0].change_cosine == [[None] * 3] * 3
    assert found.layers[1].change_cosine[0] == pytest.approx([1.0, 1.0, -1.0], abs=1e-5)
    assert found.layers[0].cka[0] == pytest.approx([1.0, 1.0, 1.0], abs=1e-5)
