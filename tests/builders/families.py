"""A tiny model of every family of encoders and decoders that the tests cover."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DebertaConfig,
    DebertaModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
)

BLOCKS = 3


WIDE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


DISENTANGLED: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}


SPECIAL: dict[str, Any] = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertModel(BertConfig(**WIDE)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=60, dim=16, n_layers=BLOCKS, n_heads=2, hidden_dim=32)
    ),
    "roberta": lambda: RobertaModel(RobertaConfig(**WIDE)),
    "mpnet": lambda: MPNetModel(MPNetConfig(**WIDE)),
    "electra": lambda: ElectraModel(ElectraConfig(**WIDE, embedding_size=8)),
    "deberta": lambda: DebertaModel(DebertaConfig(**WIDE, **DISENTANGLED)),
    "deberta-v2": lambda: DebertaV2Model(DebertaV2Config(**WIDE, **DISENTANGLED)),
    "modernbert": lambda: ModernBertModel(ModernBertConfig(**WIDE, **SPECIAL)),
    "gpt2": lambda: GPT2Model(GPT2Config(vocab_size=60, n_embd=16, n_layer=BLOCKS, n_head=2, n_positions=40)),
    "llama": lambda: LlamaModel(LlamaConfig(**WIDE)),
    "qwen2": lambda: Qwen2Model(Qwen2Config(**WIDE, num_key_value_heads=2)),
    "t5": lambda: T5EncoderModel(T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=BLOCKS, num_heads=2)),
}


DECODERS = {"gpt2", "llama", "qwen2"}


IN_EVERY_RUN = ("bert", "gpt2", "llama")
"""An encoder and two decoders; the other families are slow tests."""

OF_FAMILIES = [pytest.param(one, marks=[] if one in IN_EVERY_RUN else pytest.mark.slow) for one in FAMILIES]
"""For `pytest.mark.parametrize`."""


def made(family: str, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FAMILIES[family]()
