"""Texts into padded batches of tokens, and hidden states out of them. Padding never leaves this module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerdrift.contract.errors import InputError

MIN_LENGTH = 4
WINDOW_BATCHES = 16
"""Texts are sorted by length within windows of so many batches, which halves the padding."""

COUNTED_AT_ONCE = 1024


class Batch(NamedTuple):
    """B texts padded to T tokens.

    input_ids, attention_mask: [B, T]. real: [B, T] bool, neither padding nor special. indices: of the texts, as given.
    """

    input_ids: Tensor
    attention_mask: Tensor
    real: Tensor
    indices: list[int]


def usable_length(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, wanted: int) -> int:
    """Tokens of a text that are read: what was asked for, as far as tokenizer and model have positions.

    Raises:
        InputError: the tokenizer's own limit leaves no room for a text.
    """
    positions = int(getattr(model.config, "max_position_embeddings", None) or wanted)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == positions and module.padding_idx is not None:
            positions -= module.padding_idx + 1  # the positions of such a table begin after the padding's
            break
    limit = tokenizer.model_max_length
    if not isinstance(limit, int | float) or limit < MIN_LENGTH:
        raise InputError.at(
            "/base/uri", f"model_max_length of the tokenizer is {limit!r}; at least {MIN_LENGTH} is needed"
        )
    return int(min(wanted, positions, limit))


def batches(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int,
    max_length: int,
    batch_tokens: int | None = None,
) -> Iterator[Batch]:
    """All texts that have a token, once, in batches of like length; the order is random but depends on the texts alone.

    Random, so that wherever a reader stops, it has seen long texts and short ones alike. A batch has at most
    `batch_size` texts, and with `batch_tokens` at most so many tokens, padding included, unless it is one text.
    """
    window = batch_size * WINDOW_BATCHES
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(texts), window):
        inside = range(start, min(start + window, len(texts)))
        encoded = tokenizer(
            [texts[index] for index in inside],
            truncation=True,
            max_length=max_length,
            return_special_tokens_mask=True,
        )
        filled = [item for item in range(len(inside)) if encoded["input_ids"][item]]
        order = sorted(filled, key=lambda item: len(encoded["input_ids"][item]))
        lengths = [len(encoded["input_ids"][item]) for item in order]
        cuts = _cuts(lengths, batch_size, batch_tokens)
        for number in torch.randperm(len(cuts), generator=generator).tolist():
            chosen = order[cuts[number][0] : cuts[number][1]]
            padded = tokenizer.pad(
                {key: [encoded[key][item] for item in chosen] for key in ("input_ids", "special_tokens_mask")},
                return_tensors="pt",
            )
            own = torch.tensor(lengths[slice(*cuts[number])])
            attention = torch.arange(padded["input_ids"].shape[1])[None] < own[:, None]
            real = attention & (padded["special_tokens_mask"] == 0)
            yield Batch(padded["input_ids"], attention.long(), real, [inside[item] for item in chosen])


def _cuts(lengths: list[int], batch_size: int, batch_tokens: int | None) -> list[tuple[int, int]]:
    """Where each batch begins and ends, in texts that are sorted by length."""
    cuts, start = [], 0
    for end, length in enumerate(lengths):
        full = batch_tokens is not None and (end - start + 1) * length > batch_tokens
        if end - start == batch_size or (full and end > start):
            cuts.append((start, end))
            start = end
    return [*cuts, (start, len(lengths))] if lengths else []


def hidden_states(model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    """The states at every layer: 0 the embeddings' output, i block i's. L + 1 times [B, T, D], on the CPU."""
    with torch.inference_mode():
        return [states.cpu() for states in run(model, batch, output_hidden_states=True).hidden_states]


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[int]:
    """How many tokens of each text are read, special ones not counted."""
    counts: list[int] = []
    for start in range(0, len(texts), COUNTED_AT_ONCE):
        encoded = tokenizer(
            list(texts[start : start + COUNTED_AT_ONCE]),
            truncation=True,
            max_length=max_length,
            return_special_tokens_mask=True,
        )
        counts += [mask.count(0) for mask in encoded["special_tokens_mask"]]
    return counts


def run(model: PreTrainedModel, batch: Batch, **options: bool) -> Any:
    """The model's output on a batch; InputError where the tokenizer knows more tokens than the model."""
    known, largest = len(next(iter(model.get_input_embeddings().parameters()))), int(batch.input_ids.max())
    if largest >= known:
        raise InputError.at(
            "/base/uri",
            f"the tokenizer gives token {largest}, but the model's embeddings end at {known - 1}; resize them, or take "
            "the tokenizer that belongs to the model",
        )
    mask = batch.attention_mask.to(model.device)
    return model(input_ids=batch.input_ids.to(model.device), attention_mask=mask, **options)
