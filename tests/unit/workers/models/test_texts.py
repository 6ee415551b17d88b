from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizer, RobertaConfig, RobertaModel

from layerdrift.contract.errors import InputError
from tests.builders.models import BLOCKS, HIDDEN, tiny_bert, tiny_tokenizer
from tests.builders.texts import make_texts
from workers.models.states import hidden_states
from workers.models.texts import batches, usable_length


@pytest.fixture
def tokenizer(tmp_path: Path) -> BertTokenizer:
    return tiny_tokenizer(tmp_path)


def test_every_text_comes_once_whatever_the_batch_size(tokenizer: BertTokenizer) -> None:
    texts = make_texts(101)
    for size in (1, 7, 64, 200):
        seen = [index for batch in batches(tokenizer, texts, size, 64) for index in batch.indices]
        assert sorted(seen) == list(range(101))


def test_the_order_depends_on_the_texts_alone(tokenizer: BertTokenizer) -> None:
    texts = make_texts(50)
    one, other = ([batch.indices for batch in batches(tokenizer, texts, 8, 64)] for _ in range(2))
    assert one == other


def test_states_in_a_padded_batch_are_those_of_the_text_alone(tokenizer: BertTokenizer) -> None:
    model, texts = tiny_bert(), make_texts(12)
    for batch in batches(tokenizer, texts, 12, 64):
        together = torch.stack(hidden_states(model, batch))
        assert together.shape == (BLOCKS + 1, 12, batch.input_ids.shape[1], HIDDEN)
        for row, index in enumerate(batch.indices):
            (alone,) = batches(tokenizer, [texts[index]], 1, 64)
            length = alone.input_ids.shape[1]
            torch.testing.assert_close(
                together[:, row, :length], torch.stack(hidden_states(model, alone))[:, 0], rtol=1e-4, atol=1e-5
            )


def test_neither_padding_nor_special_tokens_are_real(tokenizer: BertTokenizer) -> None:
    (batch,) = batches(tokenizer, ["the film was good", "bad"], 2, 64)
    by_text = {index: batch.real[row].tolist() for row, index in enumerate(batch.indices)}
    assert by_text == {0: [False, True, True, True, True, False], 1: [False, True, False, False, False, False]}


def test_a_text_without_tokens_is_left_out(tokenizer: BertTokenizer) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A")  # no [CLS], no [SEP]
    found = list(batches(tokenizer, ["good", "\u200b", "bad"], 1, 64))
    assert sorted(index for batch in found for index in batch.indices) == [0, 2]


def test_a_token_that_the_model_does_not_know_is_said(tokenizer: BertTokenizer) -> None:
    tokenizer.add_tokens(["brandnewword"])
    (batch,) = batches(tokenizer, ["good brandnewword"], 1, 64)
    with pytest.raises(InputError, match="resize them"):
        hidden_states(tiny_bert(), batch)


@pytest.mark.parametrize("limit", [0, -5, "x", None])
def test_a_length_that_leaves_no_room_is_said(tokenizer: BertTokenizer, limit: Any) -> None:
    tokenizer.model_max_length = limit
    with pytest.raises(InputError, match="model_max_length"):
        usable_length(tokenizer, tiny_bert(), 64)


def test_long_texts_are_cut_at_the_length(tokenizer: BertTokenizer) -> None:
    (batch,) = batches(tokenizer, ["good " * 100], 1, 16)
    assert batch.input_ids.shape == (1, 16)


def test_positions_after_the_paddings_are_not_counted_as_usable(tokenizer: BertTokenizer) -> None:
    tokenizer.model_max_length = 10_000
    config = RobertaConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=40
    )
    model = RobertaModel(config)
    length = usable_length(tokenizer, model, 128)
    assert length == 40 - (config.pad_token_id or 0) - 1
    model(input_ids=torch.full((1, length), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, length + 1), 5))
