"""Both models of a pair, and the base model changed at random and rounded, on the same texts: what stands at the end.

The random changes are as large as the fine-tune's, matrix by matrix: what they bring about says what a change of that
size does whatever was learned. Rounding is another change that teaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.models.blockwise import BlockwiseModel
from workers.models.derived_blocks import DitheredBlocks, PerturbedBlocks
from workers.models.layer_order import Pass
from workers.models.texts import Batch
from workers.stages.common.layered_pair import LayeredPair

RANDOM_CHANGES = 2
"""Models that are changed at random: a finding counts where none of them shows it."""

EARLY = 5
"""Tokens at the start of a text whose mean difference is looked at by itself, as in the activation difference lens."""

LENS_TOKENS = 64
"""Directions that are put through the end of the tuned model together."""


@dataclass(frozen=True)
class Differences:
    """Mean differences from the base model's states by layer, [L + 1, D] each: over all tokens that count, and over the
    first EARLY of each text, its very first apart.
    """

    every: Tensor
    early: Tensor


@dataclass(frozen=True)
class Walked:
    """What stood at the end.

    last: last states of the base model, the tuned one, those changed at random and the rounded one, by batch,
    [B, T, D].
    """

    batches: list[Batch]
    last: list[list[Tensor]]


def walk(
    pair: LayeredPair,
    batches: Sequence[Batch],
    seed: int,
    on_progress: Callable[[float], None],
    ask: Callable[[Pass, list[Differences]], None],
) -> Walked:
    """Runs them block by block.

    Args:
        seed: of the random changes. ask: is given the tuned model's pass at its end, whose first batch is none of the
        texts but LENS_TOKENS places for states, and the differences of all models but the base.

    Raises:
        NotBlockwise: the blocks cannot run one at a time.
    """
    reader, depth = pair.tokenization.states, pair.base.depth
    nulls: list[BlockwiseModel] = [
        PerturbedBlocks(pair.base, pair.tuned, seed + number) for number in range(RANDOM_CHANGES)
    ]
    nulls.append(DitheredBlocks(pair.base, {token for batch in batches for token in batch.input_ids.unique().tolist()}))
    known = [pair.tokenization.known(batch) for batch in batches]
    passes = [Pass(pair.base, batches, reader), Pass(pair.tuned, [_lens_batch(), *batches], reader)]
    passes += [Pass(model, batches, reader, checked=False) for model in nulls]
    sums = [_Sums(depth + 1, pair.width) for _ in passes[1:]]
    try:
        for one in passes:
            one.start()
        for layer in range(depth + 1):
            base, *others = (_of_texts(one, batches) for one in passes)
            for found, states in zip(sums, others, strict=True):
                found.add(layer, base, states, known)
            if layer == depth:
                ask(passes[1], [found.means() for found in sums])
                return Walked(list(batches), [_of_texts(one, batches) for one in passes])
            with pair.block(layer):
                for one in passes[:2]:
                    one.advance()
                for model, one in zip(nulls, passes[2:], strict=True):
                    with model.block(layer):
                        one.advance()
            on_progress((layer + 1) / depth)
    finally:
        for one in passes:
            one.close()
    raise ValueError("a model has an end")


def _of_texts(one: Pass, batches: Sequence[Batch]) -> list[Tensor]:
    return one.states[len(one.states) - len(batches) :]


def _lens_batch() -> Batch:
    ids = torch.ones(1, LENS_TOKENS, dtype=torch.int64)
    return Batch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool), [0])


class _Sums:
    """Of the differences of a model's states from the base model's."""

    def __init__(self, layers: int, width: int) -> None:
        self._every, self._early = torch.zeros(2, layers, width, dtype=torch.float64)
        self._counts = torch.zeros(2, layers, dtype=torch.float64)

    def add(self, layer: int, base: list[Tensor], states: list[Tensor], batches: list[Batch]) -> None:
        for one, other, batch in zip(base, states, batches, strict=True):
            difference = (other.float() - one.float()).cpu()
            real = batch.real
            early = real & (torch.arange(real.shape[1]) < EARLY + 1) & (torch.arange(real.shape[1]) > 0)
            for sums, counts, chosen in ((self._every, self._counts[0], real), (self._early, self._counts[1], early)):
                sums[layer] += difference[chosen].sum(0, dtype=torch.float64)
                counts[layer] += int(chosen.sum())

    def means(self) -> Differences:
        """By layer."""
        every, early = (
            (sums / counts.clamp_min(1)[:, None]).float()
            for sums, counts in zip((self._every, self._early), self._counts, strict=True)
        )
        return Differences(every, early)
