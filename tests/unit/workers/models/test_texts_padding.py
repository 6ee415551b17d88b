"""Models whose answers depend on padding, and those whose answers do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from tests.builders.texts import make_texts
from tests.cases import builders as make
from workers.models.states import StateReader
from workers.models.texts import batches, reads_padding, run

TEXTS = [text for count in (2, 5, 9, 20) for text in make_texts(6, seed=count) if text][:24]


@pytest.mark.parametrize(
    ("family", "auto", "changes", "expected"),
    [
        ("fnet", AutoModel, {}, True),
        ("xlnet", AutoModelForSequenceClassification, {}, True),
        ("xlnet", AutoModel, {}, False),
        ("bert", AutoModel, {}, False),
        ("llama", AutoModelForSequenceClassification, {"pad_token_id": None}, False),
        ("gpt2", AutoModelForSequenceClassification, {}, False),
        ("mamba", AutoModel, {"state_size": 4}, False),
    ],
)
def test_padding_that_changes_answers_is_seen(family: str, auto: Any, changes: dict[str, Any], expected: bool) -> None:
    model = make.model_of(family, auto, **changes)
    model.train()
    frozen = next(module for module in model.modules() if module is not model)
    frozen.eval()
    before = [module.training for module in model.modules()]
    assert reads_padding(model) is expected
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("family", ["fnet", "xlnet", "bert", "llama"])
def test_a_text_in_a_batch_has_the_states_that_it_has_alone(family: str) -> None:
    model = make.model_of(family, AutoModel)
    reader = StateReader.of(model, "/base/uri")
    for batch in batches(make.WITH_START.made(), TEXTS, 8, 64):
        whole = reader.states(model, batch)
        for row in range(len(batch.indices)):
            length = int(batch.attention_mask[row].sum())
            alone = reader.states(model, batch.rows(torch.tensor([row]), length))
            for state, expected in zip(whole, alone, strict=True):
                torch.testing.assert_close(state[row, :length], expected[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["xlnet", "bert"])
def test_a_text_in_a_batch_has_the_answer_that_it_has_alone(family: str) -> None:
    model = make.model_of(family, AutoModelForSequenceClassification)
    reads_padding(model)
    lengths = set()
    with torch.no_grad():
        for batch in batches(make.WITH_START.made(), TEXTS, 8, 64):
            logits = run(model, batch).logits
            for row in range(len(batch.indices)):
                length = int(batch.attention_mask[row].sum())
                lengths.add(length)
                alone = run(model, batch.rows(torch.tensor([row]), length)).logits
                torch.testing.assert_close(logits[row], alone[0], atol=1e-4, rtol=1e-4)
    assert len(lengths) > 2
