"""Heads on states that are known: the answers of the whole model, or no cache at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification as Classifier

from tests.builders.models import BLOCKS, HIDDEN, tiny_bert, tiny_tokenizer
from tests.builders.texts import make_texts
from workers.models.states import StateReader
from workers.models.texts import batches, run
from workers.stages.common.moment_accumulator import TokenizationSpec
from workers.stages.extract import last_states as module
from workers.stages.extract.last_states import LastStates

TEXTS = make_texts(40, length=7) + make_texts(40, seed=1, length=19)


@pytest.fixture
def tokenization(tmp_path: Path) -> TokenizationSpec:
    return TokenizationSpec(tiny_tokenizer(tmp_path), 24, False, StateReader(BLOCKS + 1, HIDDEN))


@pytest.fixture
def classifier() -> Classifier:
    torch.manual_seed(3)
    config = tiny_bert(0).config
    config.num_labels = 3
    model = Classifier(config)
    model.eval()
    return model


def known(model: Classifier, tokenization: TokenizationSpec, size: int) -> LastStates:
    """The last states as the comparison reads them, in batches of another size than the head is asked in."""
    found = LastStates(len(TEXTS))
    with torch.no_grad():
        for batch in batches(tokenization.tokenizer, TEXTS, size, tokenization.length):
            found.add(batch, run(model.bert, batch).last_hidden_state)
    return found


def answers(model: Classifier, tokenization: TokenizationSpec, states: LastStates | None) -> torch.Tensor:
    cache = states.cache(model, tokenization) if states is not None else None
    found = torch.zeros(len(TEXTS), 3)
    with torch.no_grad():
        for batch in batches(tokenization.tokenizer, TEXTS, 16, tokenization.length):
            logits = cache.logits(batch, batch.indices) if cache is not None else run(model, batch).logits
            found[batch.indices] = logits
    if cache is not None:
        assert cache.used
    return found


def test_a_head_on_known_states_answers_as_the_whole_model(
    classifier: Classifier, tokenization: TokenizationSpec
) -> None:
    whole = answers(classifier, tokenization, None)
    assert float((whole[:40] - whole[40:]).abs().max()) > 0.01  # texts are told apart
    torch.testing.assert_close(
        answers(classifier, tokenization, known(classifier, tokenization, 5)), whole, atol=1e-5, rtol=1e-4
    )


def test_texts_beyond_the_memory_run_through_all_blocks(
    classifier: Classifier, tokenization: TokenizationSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 60 * 10 * HIDDEN * 4)
    states = known(classifier, tokenization, 5)
    assert any(state is None for state in states._states)
    torch.testing.assert_close(
        answers(classifier, tokenization, states), answers(classifier, tokenization, None), atol=1e-5, rtol=1e-4
    )


def test_states_of_another_model_are_found_out(classifier: Classifier, tokenization: TokenizationSpec) -> None:
    torch.manual_seed(4)
    stranger = Classifier(classifier.config).eval()
    cache = known(stranger, tokenization, 5).cache(classifier, tokenization)
    assert cache is not None
    found = torch.zeros(len(TEXTS), 3)
    with torch.no_grad():
        for batch in batches(tokenization.tokenizer, TEXTS, 16, tokenization.length):
            found[batch.indices] = cache.logits(batch, batch.indices)
    assert not cache.used
    torch.testing.assert_close(found, answers(classifier, tokenization, None), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{"order": (1, 0, 2)}, {"reads_padding": True}])
def test_there_is_no_cache_where_states_depend_on_the_batch(
    classifier: Classifier, tokenization: TokenizationSpec, changes: dict[str, Any]
) -> None:
    states = known(classifier, tokenization, 5)
    assert states.cache(classifier, tokenization) is not None
    assert states.cache(classifier, replace(tokenization, states=replace(tokenization.states, **changes))) is None
