"""How many batches a null reads; `tests/stages/test_layered.py` holds the measures against whole models."""

from __future__ import annotations

import pytest
import torch

from workers.models.texts import Batch
from workers.stages.extract.by_layer import reaching
from workers.stages.extract.nulls import NULL_TOKENS


def batches(count: int, texts: int, length: int) -> list[Batch]:
    ids = torch.ones(texts, length, dtype=torch.int64)
    one = Batch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool), list(range(texts)))
    return [one] * count


@pytest.mark.parametrize(
    ("texts", "length", "tokens", "least_texts", "expected"),
    [
        (10, 20, 401, 0, 3),
        (10, 20, 400, 0, 2),
        (1, 100, 400, 7, 7),
        (1, 4_000, 100, 40, -(-NULL_TOKENS // 4_000)),
        (1, 10, 10_000, 0, 50),
    ],
    ids=["tokens", "exactly", "texts", "long texts", "all"],
)
def test_batches_reach_so_many_tokens_and_texts(
    texts: int, length: int, tokens: int, least_texts: int, expected: int
) -> None:
    assert reaching(batches(50, texts, length), tokens, least_texts) == expected


def test_tokens_that_do_not_count_are_not_counted() -> None:
    found = batches(4, 1, 10)
    halved = [one._replace(real=one.real & (torch.arange(10) % 2 == 0)) for one in found]
    assert reaching(halved, 11) == 3
