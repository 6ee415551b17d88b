"""Both models of a pair, and the base model changed at random and rounded, on the same texts: what stands at the end.

The random changes are as large as the fine-tune's, matrix by matrix: what they bring about says what a change of that
size does whatever was learned. Rounding is another change that teaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from workers.models.blockwise import BlockwiseModel
from workers.models.derived_blocks import DitheredBlocks, PerturbedBlocks
from workers.models.layer_order import Pass
from workers.models.texts import Batch
from workers.stages.common.layered_pair import LayeredPair
from workers.stages.learned.differences import Differences, DifferenceSums, KeptDifferences
from workers.stages.learned.traits import TraitPrompts, TraitShift, TraitShifts

RANDOM_CHANGES = 2
"""Models that are changed at random: a finding counts where none of them shows it."""

LENS_TOKENS = 64
"""Directions that are put through the end of the tuned model together."""

LENS_LAYERS = 6
"""Layers whose directions are read, evenly spaced up to the last one."""


@dataclass(frozen=True)
class Walked:
    """What stood at the end.

    last: last states of the base model, the tuned one, those changed at random, the rounded one, and the benign one
    where there is one, by batch, [B, T, D]. means, kept: differences of all models but the base from it. ending: the
    tuned model's pass at its end; its first batch is none of the texts but LENS_TOKENS places for states. shifts: of
    the tuned model by trait and layer.
    """

    batches: list[Batch]
    last: list[list[Tensor]]
    means: list[Differences]
    kept: list[KeptDifferences]
    lens_layers: list[int]
    ending: Pass
    shifts: list[list[TraitShift]]


@contextmanager
def walked(
    pair: LayeredPair,
    benign: BlockwiseModel | None,
    batches: Sequence[Batch],
    prompts: TraitPrompts,
    seed: int,
    folder: Path,
    on_progress: Callable[[float], None],
) -> Iterator[Walked]:
    """Runs them block by block; inside, the tuned model's pass stands at its end.

    Args:
        benign: another fine-tune, which is one more model that learned nothing. seed: of the random changes.
        prompts: that define directions, read by the base model. folder: for the differences, removed afterwards.

    Raises:
        NotBlockwise: the blocks cannot run one at a time.
    """
    reader, depth = pair.tokenization.states, pair.base.depth
    nulls: list[BlockwiseModel] = [
        PerturbedBlocks(pair.base, pair.tuned, seed + number) for number in range(RANDOM_CHANGES)
    ]
    nulls.append(DitheredBlocks(pair.base, {token for batch in batches for token in batch.input_ids.unique().tolist()}))
    nulls += [benign] if benign is not None else []
    known = [pair.tokenization.known(batch) for batch in batches]
    passes = [Pass(pair.base, [*prompts.batches, *batches], reader)]
    passes += [Pass(pair.tuned, [_lens_batch(), *batches], reader)]
    passes += [Pass(model, batches, reader, checked=False) for model in nulls]
    lens_layers = sorted({round(depth * (place + 1) / LENS_LAYERS) for place in range(LENS_LAYERS)} - {0})
    sums = [DifferenceSums(depth + 1, pair.width) for _ in passes[1:]]
    kept = [KeptDifferences(folder / f"differences-{number}", known) for number in range(len(sums))]
    shifts = TraitShifts(prompts, seed)
    try:
        for one in passes:
            one.start()
        for layer in range(depth + 1):
            base, *others = (_of_texts(one, batches) for one in passes)
            for place, (found, files, states) in enumerate(zip(sums, kept, others, strict=True)):
                found.add(layer, base, states, known)
                if place == 0 or layer in lens_layers:
                    files.put(layer, base, states)
            prompted = passes[0].states[: len(prompts.batches)]
            shifts.add(layer, prompted, base, known, [one.mean(layer) for one in sums])
            if layer == depth:
                break
            with pair.block(layer):
                for one in passes[:2]:
                    one.advance()
                for model, one in zip(nulls, passes[2:], strict=True):
                    with model.block(layer):
                        one.advance()
            on_progress((layer + 1) / depth)
        last = [_of_texts(one, batches) for one in passes]
        yield Walked(list(batches), last, [found.means() for found in sums], kept, lens_layers, passes[1], shifts.found)
    finally:
        for one in passes:
            one.close()
        for files in kept:
            files.clear()


def _of_texts(one: Pass, batches: Sequence[Batch]) -> list[Tensor]:
    return one.states[len(one.states) - len(batches) :]


def _lens_batch() -> Batch:
    ids = torch.ones(1, LENS_TOKENS, dtype=torch.int64)
    return Batch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool), [0])
