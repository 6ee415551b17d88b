"""The strongest latents of every token of the shown texts, in each model's own autoencoders."""

from __future__ import annotations

import torch
from torch import Tensor

from layerdrift.contract.report import TokenDrift, TokenLatents, TokenText
from workers.analysis.sae import SaeStack
from workers.models.texts import batches
from workers.stages.common.context import PairContext
from workers.stages.common.model_pair import load_pair
from workers.stages.common.moment_accumulator import BATCH_TEXTS
from workers.stages.extract.stage import Extracted
from workers.stages.sae.splicing import Dictionaries

STRONGEST = 3
MAX_ENTRIES = 180_000
"""Latents that a report lists in all: beyond that fewer of each token, at least one, and then fewer texts."""


def with_latents(context: PairContext, extracted: Extracted, dictionaries: Dictionaries) -> TokenDrift:
    """The shown texts with the latents of their tokens; texts beyond MAX_ENTRIES as they were."""
    shown, resolved = extracted.tokens, context.resolved
    strongest, count = budget(shown.texts, dictionaries.layers)
    texts = extracted.shown[:count]
    pair = load_pair(resolved.base, context.tuned, resolved.tokenizer, resolved.length)
    found: dict[int, TokenLatents] = {}
    for batch in batches(pair.tokenization.tokenizer, texts, BATCH_TEXTS, pair.tokenization.length):
        sides = [torch.stack(states).cpu() for states in pair.states(batch)]
        for row, index in enumerate(batch.indices):
            length = int(batch.attention_mask[row].sum())
            base, tuned = (side[:, row, :length] for side in sides)
            found[index] = TokenLatents(
                base=_strongest(dictionaries.stack, 0, base, strongest),
                tuned=_strongest(dictionaries.stack, dictionaries.layers, tuned, strongest),
            )
            context.on_progress(1.0, f"latents of the shown texts: {len(found)} of {count}")
    told = [text.model_copy(update={"latents": found.get(index)}) for index, text in enumerate(shown.texts)]
    return shown.model_copy(update={"texts": told})


def budget(texts: list[TokenText], layers: int) -> tuple[int, int]:
    """How many latents of a token are told, and of how many texts."""
    sizes = [2 * layers * len(text.tokens) for text in texts]
    strongest = max(1, min(STRONGEST, MAX_ENTRIES // max(1, sum(sizes))))
    left, count = MAX_ENTRIES, 0
    for size in sizes:
        left -= strongest * size
        if left < 0:
            break
        count += 1
    return strongest, count


def _strongest(stack: SaeStack, first: int, rows: Tensor, count: int) -> list[list[list[tuple[int, float]]]]:
    """Of the sites from `first` on; rows: [layers, T, D]. Only latents that are active."""
    found = []
    for layer, states in enumerate(rows):
        top = stack.encode(first + layer, states).topk(count, dim=1)
        found.append(
            [
                [(index, round(value, 3)) for index, value in zip(indices, values, strict=True) if value > 0]
                for indices, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            ]
        )
    return found
