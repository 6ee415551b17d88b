"""The strongest latents of every token of the shown texts, in each model's own autoencoders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from torch import Tensor

from workers.models.texts import Batch, Text, batches
from workers.results.tokens import TokenLatents
from workers.stages.common.context import PairContext
from workers.stages.common.layered_pair import layered_pair
from workers.stages.common.model_pair import load_pair
from workers.stages.common.moment_accumulator import BATCH_TEXTS
from workers.stages.extract.extracted import Extracted
from workers.stages.extract.layer_walk import LayerWalk
from workers.stages.sae.findings import Dictionaries

STRONGEST = 3
MAX_ENTRIES = 180_000
"""Latents that a report lists in all: beyond that fewer of each token, at least one, and then fewer texts."""


def token_latents(context: PairContext, extracted: Extracted, dictionaries: Dictionaries) -> list[TokenLatents | None]:
    """By shown text, the latents of its tokens; None of texts beyond MAX_ENTRIES."""
    shown, layout = extracted.tokens, dictionaries.layout
    strongest, count = budget([len(text.tokens) for text in shown.texts], len(dictionaries.layers))
    texts = extracted.shown[:count]
    read = _in_layers if extracted.execution.mode == "layers" else _whole
    found: dict[int, TokenLatents] = {}
    for batch, sides in read(context, texts, dictionaries.layers):
        for row, index in enumerate(batch.indices):
            length = int(batch.attention_mask[row].sum())
            base, tuned = ([state[row, :length] for state in side] for side in sides)
            found[index] = TokenLatents(
                base=_strongest(dictionaries, layout.base_sites, base, extracted.layers, strongest),
                tuned=_strongest(dictionaries, layout.tuned_sites, tuned, extracted.layers, strongest),
            )
            context.on_progress(1.0, f"latents of the shown texts: {len(found)} of {count}")
    return [found.get(index) for index in range(len(shown.texts))]


Sides = tuple[list[Tensor], list[Tensor]]
"""States of the base and the tuned model at some layers, [B, T, D] each."""


def _whole(context: PairContext, texts: list[Text], layers: list[int]) -> Iterator[tuple[Batch, Sides]]:
    resolved = context.resolved
    pair = load_pair(resolved.base, context.tuned, resolved.tokenizer, resolved.length)
    for batch in batches(pair.tokenization.tokenizer, texts, BATCH_TEXTS, pair.tokenization.length):
        base, tuned = pair.states(batch)
        yield batch, ([base[layer] for layer in layers], [tuned[layer] for layer in layers])


def _in_layers(context: PairContext, texts: list[Text], layers: list[int]) -> Iterator[tuple[Batch, Sides]]:
    resolved = context.resolved
    pair = layered_pair(resolved.base, context.tuned, resolved.tokenizer, resolved.length)
    read = list(batches(pair.tokenization.tokenizer, texts, BATCH_TEXTS, pair.tokenization.length))
    walk = LayerWalk(pair, read, twin_batches=0, random_batches=0, seed=0)
    kept: list[Sides] = [([], []) for _ in read]
    with closing(walk.layers(max(layers), lambda _: None, lambda _: None)) as standing:
        for states in standing:
            if states.layer not in layers:
                continue
            for (base, tuned), one, other in zip(kept, states.base, states.tuned, strict=True):
                base.append(one.float().cpu())
                tuned.append(other.float().cpu())
    yield from zip(read, kept, strict=True)


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
    dictionaries: Dictionaries, sites: list[int], rows: list[Tensor], layers: int, count: int
) -> list[list[list[tuple[int, float]]]]:
    """By layer and token, the latents that are active: none at layers without autoencoders.

    Args:
        sites: of the layers with autoencoders. rows: at these layers, [T, D] each. layers: L + 1.
    """
    found: list[list[list[tuple[int, float]]]] = [[[] for _ in rows[0]] for _ in range(layers)]
    for site, layer, states in zip(sites, dictionaries.layers, rows, strict=True):
        top = dictionaries.stack.encode(site, states).topk(count, dim=1)
        found[layer] = [
            [(index, round(value, 3)) for index, value in zip(indices, values, strict=True) if value > 0]
            for indices, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
    return found
