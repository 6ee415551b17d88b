"""Tiny real models with a tokenizer over the words of `texts`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer, PreTrainedModel, logging

from tests.builders.texts import WORDS

logging.set_verbosity_error()
logging.disable_progress_bar()

HIDDEN, BLOCKS = 32, 3


def tiny_tokenizer(folder: Path) -> BertTokenizer:
    """A word-level BERT tokenizer over WORDS."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    return BertTokenizer(vocab=str(vocabulary), model_max_length=64)


def tiny_bert(seed: int = 0, blocks: int = BLOCKS, hidden: int = HIDDEN) -> BertModel:
    """A randomly initialised BERT, in evaluation mode; weights large enough for its blocks to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(WORDS) + 5,
            hidden_size=hidden,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            intermediate_size=2 * hidden,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
        model = BertModel(config)
        model.eval()
        return model


def save_model(model: PreTrainedModel, folder: Path) -> Path:
    """Writes a model and the tiny tokenizer in transformers' layout."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tiny_tokenizer(folder).save_pretrained(folder)
    return folder


def add_noise(model: BertModel, block: int, scale: float = 0.5) -> None:
    """Adds noise to the weights of one block, counted from 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.encoder.layer[block - 1].parameters():
            parameter.add_(scale * parameter.std() * torch.randn(parameter.shape, generator=generator))
