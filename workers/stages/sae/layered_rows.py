"""Rows for the autoencoders from models that run block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from layerdrift.contract.errors import InputError
from workers.models.blockwise import BlockFiles
from workers.models.derived_blocks import RandomBlocks
from workers.models.device import best_device, fast_dtype
from workers.models.inliers import Inliers, without_first
from workers.models.layer_order import Pass
from workers.models.structure import NotBlockwise
from workers.models.texts import Batch
from workers.scratch import ActivationStore
from workers.site_rows import SiteRows
from workers.stages.common.context import PairContext
from workers.stages.common.layered_pair import LayeredPair, layered_pair
from workers.stages.common.moment_accumulator import TokenizationSpec
from workers.stages.common.progress import OnProgress
from workers.stages.extract.layer_walk import LayerStates, LayerWalk

CHUNK_BYTES = 512 << 20
"""Memory for the states of texts that go through the blocks together; each further chunk reads the weights again."""

HELD = 3.0
"""A suspended forward pass holds so many times its states, about."""


Fill = Callable[[Iterator[Batch], ActivationStore, OnProgress], int]
"""Runs models over batches until a store is full, and tells how many texts that took."""

Walked = Callable[[list[Batch], SiteRows, Callable[[float], None]], Tensor | None]
"""Leaves the rows of some batches, and tells which of them are kept; None: all are."""


def fill_by_layer(context: PairContext, tokenization: TokenizationSpec, layers: list[int]) -> Fill:
    """Runs both models.

    Args:
        layers: of which rows are kept.
    """
    resolved = context.resolved
    found = layered_pair(resolved.base, context.tuned, resolved.tokenizer, resolved.length)
    pair = replace(found, tokenization=tokenization)
    sites = SiteRows(context.folder / "train-sites", 2 * len(layers), pair.width)

    def walked(chunk: list[Batch], into: SiteRows, on_progress: Callable[[float], None]) -> Tensor:
        return _Chunk(pair, chunk, layers).walked(into, on_progress)

    return _filling(walked, sites, 2 * HELD * pair.width * pair.base.dtype.itemsize)


def fill_from_random(context: PairContext, tokenization: TokenizationSpec, layers: list[int], seed: int) -> Fill:
    """Runs a copy of the base model that was never trained, one block at a time, over tokens that count in the pair.

    Raises:
        InputError: transformers does not say how it is drawn.
    """
    base = BlockFiles(context.resolved.base.folder, "/base/uri", best_device())
    vocabulary = range(int(base.model.config.get_text_config().vocab_size))  # the same rows in every chunk
    try:
        drawn = RandomBlocks(base, fast_dtype(base.device), seed, vocabulary)
    except NotBlockwise as error:
        raise InputError.at("/analysis/sae/random_weights", f"no random copy of the base model: {error}") from error
    width = tokenization.states.width
    sites = SiteRows(context.folder / "control-sites", len(layers), width)

    def walked(chunk: list[Batch], into: SiteRows, on_progress: Callable[[float], None]) -> None:
        going = Pass(drawn, chunk, tokenization.states, checked=False)
        counted = [tokenization.known(batch).real for batch in chunk]
        try:
            going.start()
            for layer in range(max(layers) + 1):
                if layer:
                    with drawn.block(layer - 1):
                        going.advance()
                    on_progress(layer / max(layers))
                if layer in layers:
                    for real, state in zip(counted, going.states, strict=True):
                        into.add(layers.index(layer), state[real.to(state.device)])
        finally:
            going.close()

    return _filling(walked, sites, HELD * width * drawn.model.dtype.itemsize)


def _filling(walked: Walked, sites: SiteRows, token_bytes: float) -> Fill:
    """A chunk of texts at a time.

    Args:
        token_bytes: what a token takes while its text waits before a block.
    """

    def fill(texts: Iterator[Batch], train: ActivationStore, on_progress: OnProgress) -> int:
        used = 0
        while not train.full:
            chunk = _chunk(texts, min(train.max_rows - train.rows, CHUNK_BYTES / token_bytes))
            if not chunk:
                break
            used += sum(len(batch.indices) for batch in chunk)
            before = train.rows

            def share(of_chunk: float, chunk: list[Batch] = chunk, before: int = before) -> None:
                here = min(train.max_rows - before, sum(int(batch.real.sum()) for batch in chunk))
                on_progress((before + of_chunk * here) / train.max_rows)

            sites.into(train, walked(chunk, sites, share))
        return used

    return fill


def _chunk(spare: Iterator[Batch], tokens: float) -> list[Batch]:
    """The next batches, until they have so many tokens."""
    found, count = list[Batch](), 0
    for batch in spare:
        found.append(batch)
        count += int(batch.real.sum())
        if count >= tokens:
            break
    return found


class _Chunk:
    """Batches that go through the blocks together."""

    def __init__(self, pair: LayeredPair, batches: list[Batch], layers: list[int]) -> None:
        self._pair = pair
        self._batches = batches
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._counted = [without_first(batch.real, pair.tokenization.causal) for batch in batches]
        self._outlying = [torch.zeros_like(batch.real) for batch in batches]

    def walked(self, sites: SiteRows, on_progress: Callable[[float], None]) -> Tensor:
        """Leaves the rows of all tokens but first ones in `sites`, and tells which of them are inliers, [N] bool."""
        walk = LayerWalk(self._pair, self._batches, twin_batches=0, random_batches=0, seed=0, fast=True)
        rule = self._pair.tokenization.rule
        with closing(walk.layers(self._pair.layers - 1, on_progress, lambda _: None)) as layers:
            for standing in layers:
                self._mark(standing, rule)
                if standing.layer in self._places:
                    self._keep(standing, sites)
        for batch, outlying in zip(self._batches, self._outlying, strict=True):
            rule.remember(batch, outlying)
        pairs = zip(self._counted, self._outlying, strict=True)
        return torch.cat([~outlying[counted] for counted, outlying in pairs])

    def _mark(self, standing: LayerStates, rule: Inliers) -> None:
        for states, limits in ((standing.base, rule.base_limits), (standing.tuned, rule.tuned_limits)):
            limit = limits[standing.layer].to(states[0].device)
            for batch, outlying, state in zip(self._batches, self._outlying, states, strict=True):
                outlying |= (state.float().norm(dim=-1) > limit).cpu() & batch.attention_mask.bool()

    def _keep(self, standing: LayerStates, sites: SiteRows) -> None:
        place = self._places[standing.layer]
        for site, states in ((place, standing.base), (len(self._places) + place, standing.tuned)):
            for counted, state in zip(self._counted, states, strict=True):
                sites.add(site, state[counted.to(state.device)])
