"""Tiny models with heads."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from tests.builders.models import BLOCKS, HIDDEN
from tests.builders.texts import WORDS

VOCABULARY = len(WORDS) + 5


SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "initializer_range": 0.2}


BERT_SIZES: dict[str, Any] = {
    **SIZES,
    "hidden_size": HIDDEN,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "intermediate_size": 2 * HIDDEN,
    "max_position_embeddings": 64,
}


def seeded(make: type[PreTrainedModel], config: Any, seed: int = 0) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make(config)
    model.eval()
    return model


def classifier(labels: int = 3, seed: int = 0, **more: Any) -> PreTrainedModel:
    sizes = BERT_SIZES | {"num_labels": labels} | more
    return seeded(BertForSequenceClassification, BertConfig(**sizes), seed)


def causal_lm(seed: int = 0) -> PreTrainedModel:
    sizes = SIZES | {"n_embd": HIDDEN, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64}
    return seeded(GPT2LMHeadModel, GPT2Config(**sizes, bos_token_id=2, eos_token_id=3), seed)
