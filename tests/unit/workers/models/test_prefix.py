"""The first blocks run once for each row: answers are those of the whole model, or the cache is given up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification, PreTrainedModel

from tests.builders.heads import causal_lm, classifier
from tests.builders.models import tiny_tokenizer
from tests.builders.texts import make_texts
from workers.models import prefix as module
from workers.models.prefix import PrefixCache
from workers.models.structure import block_list
from workers.models.texts import Batch, batches, run

TEXTS = make_texts(12)
LABELS = 3


def batches_of(folder: Path, size: int) -> list[Batch]:
    return list(batches(tiny_tokenizer(folder), TEXTS, size, 32))


def answers(model: PreTrainedModel, found: list[Batch], cache: PrefixCache | None = None) -> Tensor:
    """A classifier's answers to every text."""
    rows = torch.zeros(len(TEXTS), LABELS)
    with torch.no_grad():
        for batch in found:
            rows[batch.indices] = run(model, batch).logits if cache is None else cache.logits(batch, batch.indices)
    return rows


class Counter:
    """How often a block ran."""

    def __init__(self, model: PreTrainedModel, block: int) -> None:
        self.runs = 0
        block_list(model.base_model)[block - 1].register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.runs += 1


@pytest.mark.parametrize("prefix", [1, 2, 3])
def test_answers_from_known_states_are_those_of_the_whole_model_in_batches_of_any_size(
    tmp_path: Path, prefix: int
) -> None:
    model = classifier(LABELS)
    whole = answers(model, batches_of(tmp_path, 12))
    first = Counter(model, prefix)
    cache = PrefixCache(model, prefix, len(TEXTS))
    torch.testing.assert_close(answers(model, batches_of(tmp_path, 5), cache), whole, rtol=1e-4, atol=1e-5)
    assert not cache.used
    answers(model, batches_of(tmp_path, 4), cache)
    assert cache.used
    before = first.runs
    torch.testing.assert_close(answers(model, batches_of(tmp_path, 3), cache), whole, rtol=1e-4, atol=1e-5)
    assert first.runs == before


def test_a_decoders_answers_at_every_token_are_those_of_the_whole_model() -> None:
    model, ids = causal_lm(), 5 + torch.arange(24).view(3, 8)
    batch = Batch(ids, torch.ones_like(ids), torch.ones_like(ids).bool(), [0, 1, 2])
    cache = PrefixCache(model, 2, 3)
    with torch.no_grad():
        whole = cache.logits(batch, batch.indices)
        again = cache.logits(batch, batch.indices)
    assert cache.used
    assert again.shape[:2] == (3, 8)
    torch.testing.assert_close(again, whole, rtol=1e-4, atol=1e-5)


def test_the_blocks_are_back_in_their_places_afterwards(tmp_path: Path) -> None:
    model = classifier(LABELS)
    blocks = list(block_list(model.base_model))
    cache = PrefixCache(model, 2, len(TEXTS))
    for _ in range(2):
        answers(model, batches_of(tmp_path, 12), cache)
    assert cache.used
    assert all(one is other for one, other in zip(block_list(model.base_model), blocks, strict=True))


def test_gradients_above_the_prefix_are_those_of_the_whole_model(tmp_path: Path) -> None:
    model, (batch,) = classifier(LABELS), batches_of(tmp_path, 12)
    cache = PrefixCache(model, 2, len(TEXTS))
    gradients = []
    for _ in range(2):  # the first time all blocks run
        model.zero_grad()
        cache.logits(batch, batch.indices).square().sum().backward()
        last: Any = block_list(model.base_model)[2]
        gradients.append(last.output.dense.weight.grad.clone())
    assert cache.used
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


def test_states_that_are_not_frozen_after_all_are_found_out_on_first_use(tmp_path: Path) -> None:
    model, (batch,) = classifier(LABELS), batches_of(tmp_path, 12)
    cache = PrefixCache(model, 2, len(TEXTS))
    with torch.no_grad():
        cache.logits(batch, batch.indices)
        for parameter in block_list(model.base_model)[0].parameters():
            parameter.add_(0.1)
        found = cache.logits(batch, batch.indices)
        assert not cache.used
        assert torch.equal(found, run(model, batch).logits)
        cache.logits(batch, batch.indices)
    assert not cache.used


def test_states_of_another_width_are_found_out_too(tmp_path: Path) -> None:
    model, (batch,) = classifier(LABELS), batches_of(tmp_path, 12)
    cache = PrefixCache(model, 2, len(TEXTS))
    with torch.no_grad():
        cache.logits(batch, batch.indices)
        cache.fill([torch.zeros(int(length), 7) for length in batch.attention_mask.sum(1)])
        torch.testing.assert_close(cache.logits(batch, batch.indices), run(model, batch).logits)
    assert not cache.used


def test_rows_beyond_the_memory_run_through_all_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_BYTES", 1)
    model = classifier(LABELS)
    first, found = Counter(model, 1), batches_of(tmp_path, 4)
    cache = PrefixCache(model, 1, len(TEXTS))
    whole = answers(model, found, cache)
    runs = first.runs
    torch.testing.assert_close(answers(model, found, cache), whole, rtol=1e-4, atol=1e-5)
    assert cache.used  # the first batch's rows are known
    assert first.runs == runs + len(found) - 1 + 1  # one run more looks whether the cache agrees


def test_dropout_above_the_prefix_stays_on_after_the_look_whether_the_cache_agrees(tmp_path: Path) -> None:
    model, (batch,) = classifier(LABELS), batches_of(tmp_path, 12)
    assert isinstance(model, BertForSequenceClassification)
    model.train()
    for block in block_list(model.base_model)[:2]:
        block.eval()
    model.bert.embeddings.eval()
    modes = [module.training for module in model.modules()]
    cache = PrefixCache(model, 2, len(TEXTS))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        cache.logits(batch, batch.indices)
        one, other = (cache.logits(batch, batch.indices) for _ in range(2))
    assert cache.used
    assert [module.training for module in model.modules()] == modes
    assert not torch.allclose(one, other)
