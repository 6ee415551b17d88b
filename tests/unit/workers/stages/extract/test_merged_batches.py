"""Texts of many batches in larger ones, and their states back where they came from."""

from __future__ import annotations

import pytest
import torch

from workers.models.texts import Batch
from workers.stages.common.moment_accumulator import BATCH_TEXTS, BATCH_TOKENS
from workers.stages.extract.merged_batches import MergedBatches, Regrouped


def batch(lengths: list[int], start: int, typed: bool = False) -> Batch:
    shape = len(lengths), max(lengths)
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    ids = (start + torch.arange(shape[0] * shape[1]).view(shape)) * mask
    return Batch(ids, mask, mask.bool(), list(range(shape[0])), mask + 1 if typed else None)


def originals(typed: bool = False) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 90, (6, 10), generator=generator).tolist()
    return [batch(some, 1_000 * number, typed) for number, some in enumerate([*lengths, [BATCH_TOKENS + 5]])]


def states(read: list[Batch]) -> list[torch.Tensor]:
    """Two features of every token: its id, and how many tokens its batch has."""
    return [
        torch.stack([one.input_ids.float(), torch.full_like(one.input_ids, one.input_ids.numel()).float()], -1)
        for one in read
    ]


@pytest.mark.parametrize("halved", [False, True])
def test_every_text_is_read_once_and_comes_back_where_it_was(halved: bool) -> None:
    given = originals()
    merged = MergedBatches.of(given)
    if halved:
        merged = merged.halved(given)
    back = Regrouped(states(merged.batches), merged.layout)
    assert len(back) == len(given)
    for original, found in zip(given, back, strict=True):
        assert torch.equal(found[..., 0].long(), original.input_ids)
        assert bool((found[original.attention_mask == 0] == 0).all())
    assert sum(int(one.attention_mask.sum()) for one in merged.batches) == sum(
        int(one.attention_mask.sum()) for one in given
    )
    assert torch.equal(back[1:3][1], back[2])


def test_batches_are_within_their_bounds_and_have_less_padding() -> None:
    given, merged = originals(), MergedBatches.of(originals())
    for one in merged.batches:
        assert len(one.indices) <= BATCH_TEXTS
        assert one.input_ids.numel() <= BATCH_TOKENS or len(one.indices) == 1
    assert sum(one.input_ids.numel() for one in merged.batches) < sum(one.input_ids.numel() for one in given)


def test_halves_put_other_texts_beside_each_other() -> None:
    given = originals()
    merged = MergedBatches.of(given)
    halves = merged.halved(given)
    assert max(len(one.indices) for one in halves.batches) <= BATCH_TEXTS // 2
    sizes = Regrouped(states(merged.batches), merged.layout)[0], Regrouped(states(halves.batches), halves.layout)[0]
    real = given[0].attention_mask.bool()
    assert not bool((sizes[0][real][:, 1] == sizes[1][real][:, 1]).any())


def test_the_types_of_a_pairs_tokens_come_along_where_all_texts_have_them() -> None:
    given = originals(typed=True)
    merged = MergedBatches.of(given)
    assert all(one.token_types is not None and int(one.token_types.max()) == 2 for one in merged.batches)
    mixed = MergedBatches.of([*given[:2], batch([3], 0)])
    assert any(one.token_types is None for one in mixed.batches)
