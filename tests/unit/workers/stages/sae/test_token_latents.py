"""How many latents of shown tokens are told, and which."""

from __future__ import annotations

import pytest
import torch

from tests.builders.latents import side
from workers.stages.sae.findings import Dictionaries
from workers.stages.sae.token_latents import MAX_ENTRIES, STRONGEST, _strongest, budget


@pytest.mark.parametrize(
    ("tokens", "layers", "expected"),
    [
        ([], 10, (STRONGEST, 0)),
        ([10, 20], 10, (STRONGEST, 2)),
        ([MAX_ENTRIES // (2 * STRONGEST)], 1, (STRONGEST, 1)),
        ([MAX_ENTRIES // (2 * STRONGEST) + 1], 1, (2, 1)),
        ([MAX_ENTRIES // 2], 1, (1, 1)),
        ([MAX_ENTRIES // 2 + 1], 1, (1, 0)),
        ([10, MAX_ENTRIES, 10], 1, (1, 1)),
    ],
    ids=[
        "no texts",
        "all fit",
        "just all fit",
        "fewer of each token",
        "one of each token",
        "one text is too long",
        "texts after a long one are left out too",
    ],
)
def test_fewer_latents_of_each_token_are_told_first_and_then_fewer_texts(
    tokens: list[int], layers: int, expected: tuple[int, int]
) -> None:
    assert budget(tokens, layers) == expected


@pytest.mark.parametrize("tokens", [[100] * 30, [5000, 3, 70_000], [1] * 7, [59_999, 59_999]])
@pytest.mark.parametrize("layers", [1, 7, 33])
def test_a_report_never_lists_more_than_its_limit(tokens: list[int], layers: int) -> None:
    strongest, count = budget(tokens, layers)
    assert 1 <= strongest <= STRONGEST
    assert strongest * 2 * layers * sum(tokens[:count]) <= MAX_ENTRIES


def test_the_strongest_active_latents_of_every_token_come_first() -> None:
    """Each latent is a feature; below 0.5 it is silent."""
    stack = side(4, 0).stack
    found = Dictionaries([0, 2], stack, torch.zeros(4, 4), None, [[], []], [[], []], [])
    rows = [torch.tensor([[0.6, 0.9, 0.1, 0.7]]), torch.tensor([[0.0, 0.2, 2.0, 0.4]])]
    assert _strongest(found, [0, 1], rows, 3, 2) == [[[(1, 0.9), (3, 0.7)]], [[]], [[(2, 2.0)]]]
    assert _strongest(found, [0, 1], [0.1 * states for states in rows], 3, 2) == [[[]], [[]], [[]]]
