"""The strongest latents of every token of the shown texts, in each model's own autoencoders."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.models.texts import batches
from workers.results.tokens import TokenLatents
from workers.stages.common.context import PairContext
from workers.stages.common.model_pair import load_pair
from workers.stages.common.moment_accumulator import BATCH_TEXTS
from workers.stages.extract.extracted import Extracted
from workers.stages.sae.findings import Dictionaries

STRONGEST = 3
MAX_ENTRIES = 180_000
"""Latents that a report lists in all: beyond that fewer of each token, at least one, and then fewer texts."""


def token_latents(context: PairContext, extracted: Extracted, dictionaries: Dictionaries) -> list[TokenLatents | None]:
    """By shown text, the latents of its tokens; None of texts beyond MAX_ENTRIES."""
    shown, resolved, layout = extracted.tokens, context.resolved, dictionaries.layout
    strongest, count = budget([len(text.tokens) for text in shown.texts], len(dictionaries.layers))
    texts = extracted.shown[:count]
    pair = load_pair(resolved.base, context.tuned, resolved.tokenizer, resolved.length)
    found: dict[int, TokenLatents] = {}
    for batch in batches(pair.tokenization.tokenizer, texts, BATCH_TEXTS, pair.tokenization.length):
        sides = [torch.stack(states).cpu() for states in pair.states(batch)]
        for row, index in enumerate(batch.indices):
            length = int(batch.attention_mask[row].sum())
            base, tuned = (side[:, row, :length] for side in sides)
            found[index] = TokenLatents(
                base=_strongest(dictionaries, layout.base_sites, base, strongest),
                tuned=_strongest(dictionaries, layout.tuned_sites, tuned, strongest),
            )
            context.on_progress(1.0, f"latents of the shown texts: {len(found)} of {count}")
    return [found.get(index) for index in range(len(shown.texts))]


def budget(tokens: list[int], layers: int) -> tuple[int, int]:
    """How many latents of a token are told, and of how many texts.

    Args:
        tokens: of each shown text, how many.
    """
    sizes = [2 * layers * count for count in tokens]
    strongest = max(1, min(STRONGEST, MAX_ENTRIES // max(1, sum(sizes))))
    left, count = MAX_ENTRIES, 0
    for size in sizes:
        left -= strongest * size
        if left < 0:
            break
        count += 1
    return strongest, count


def _strongest(
    dictionaries: Dictionaries, sites: list[int], rows: Tensor, count: int
) -> list[list[list[tuple[int, float]]]]:
    """By layer and token, the latents that are active: none at layers without autoencoders.

    Args:
        sites: of the layers with autoencoders. rows: [L + 1, T, D].
    """
    found: list[list[list[tuple[int, float]]]] = [[[] for _ in states] for states in rows]
    for site, layer in zip(sites, dictionaries.layers, strict=True):
        top = dictionaries.stack.encode(site, rows[layer]).topk(count, dim=1)
        found[layer] = [
            [(index, round(value, 3)) for index, value in zip(indices, values, strict=True) if value > 0]
            for indices, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
    return found
