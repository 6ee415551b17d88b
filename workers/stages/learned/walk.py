"""Both models of a pair, and the base model changed at random and rounded, on the same texts: what stands at the end.

The random changes are as large as the fine-tune's, matrix by matrix: what they bring about says what a change of that
size does whatever was learned. Rounding is another change that teaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from workers.analysis.intruders import intruders, is_decomposed
from workers.models.blockwise import BlockwiseModel
from workers.models.derived_blocks import DitheredBlocks, PerturbedBlocks
from workers.models.layer_order import Pass
from workers.models.texts import Batch
from workers.stages.common.layered_pair import LayeredPair
from workers.stages.learned.differences import Differences, DifferenceSums, HalfMeans, KeptDifferences
from workers.stages.learned.latents import DifferenceRows
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
    where there is one, by batch, [B, T, D]. means, kept: differences of all models but the base from it. halves: of the
    base model from itself between halves of the texts. ending: the
    tuned model's pass at its end; its first batch is none of the texts but LENS_TOKENS places for states. shifts: of
    the tuned model by trait and layer. rows: for autoencoders of the difference; None where they are not asked for.
    """

    batches: list[Batch]
    last: list[list[Tensor]]
    means: list[Differences]
    halves: list[Differences]
    kept: list[KeptDifferences]
    lens_layers: list[int]
    ending: Pass
    shifts: list[list[TraitShift]]
    intruders: list[BlockIntruders]
    rows: DifferenceRows | None = None


class BlockIntruders(NamedTuple):
    """Of a block, by its layer. matrices: that were decomposed. found: intruder dimensions in all of them. random: the
    most in a copy with random changes.
    """

    layer: int
    matrices: int
    found: int
    random: int


@dataclass(frozen=True)
class Asked:
    """What is measured on the way.

    prompts: that define directions, read by the base model. autoencoders: layers whose differences autoencoders are
    trained on. seed: of the random changes. folder: for the differences, removed afterwards.
    """

    prompts: TraitPrompts
    autoencoders: Sequence[int]
    seed: int
    folder: Path


@contextmanager
def walked(
    pair: LayeredPair,
    benign: BlockwiseModel | None,
    batches: Sequence[Batch],
    asked: Asked,
    on_progress: Callable[[float], None],
) -> Iterator[Walked]:
    """Runs them block by block; inside, the tuned model's pass stands at its end.

    Args:
        benign: another fine-tune, which is one more model that learned nothing.

    Raises:
        NotBlockwise: the blocks cannot run one at a time.
    """
    walk, depth = _Walk(pair, benign, batches, asked), pair.base.depth
    try:
        walk.start()
        for layer in range(depth):
            walk.measure(layer)
            walk.advance(layer)
            on_progress((layer + 1) / depth)
        walk.measure(depth)
        yield walk.found()
    finally:
        walk.close()


class _Walk:
    """The passes of all models, and what is measured of them layer by layer; arguments as of `walked`."""

    def __init__(
        self,
        pair: LayeredPair,
        benign: BlockwiseModel | None,
        batches: Sequence[Batch],
        asked: Asked,
    ) -> None:
        self._pair, self._batches, self._prompts = pair, list(batches), asked.prompts
        prompts, seed, folder = asked.prompts, asked.seed, asked.folder
        reader, depth = pair.tokenization.states, pair.base.depth
        changed = [PerturbedBlocks(pair.base, pair.tuned, seed + number) for number in range(RANDOM_CHANGES)]
        read = {token for batch in batches for token in batch.input_ids.unique().tolist()}
        self._nulls: list[BlockwiseModel] = [*changed, DitheredBlocks(pair.base, read)]
        self._nulls += [benign] if benign is not None else []
        self._known = [pair.tokenization.known(batch) for batch in batches]
        self._passes = [Pass(pair.base, [*prompts.batches, *batches], reader)]
        self._passes += [Pass(pair.tuned, [_lens_batch(), *batches], reader)]
        self._passes += [Pass(model, batches, reader, checked=False) for model in self._nulls]
        self._lens_layers = sorted({round(depth * (place + 1) / LENS_LAYERS) for place in range(LENS_LAYERS)} - {0})
        self._sums = [DifferenceSums(depth + 1, pair.width) for _ in self._passes[1:]]
        self._kept = [
            KeptDifferences(folder / f"differences-{number}", self._known) for number in range(len(self._sums))
        ]
        self._halves = HalfMeans(depth + 1, pair.width, seed)
        self._rows: DifferenceRows | None = None
        if asked.autoencoders:
            self._rows = DifferenceRows(folder / "autoencoders", self._known, asked.autoencoders, len(self._sums))
        self._shifts, self._intruders = TraitShifts(prompts, seed, RANDOM_CHANGES), list[BlockIntruders]()

    def start(self) -> None:
        """Runs all models to their first block."""
        for one in self._passes:
            one.start()

    def measure(self, layer: int) -> None:
        """The differences of all models from the base where they stand."""
        base, *others = (self._of_texts(one) for one in self._passes)
        for place, (sums, files, states) in enumerate(zip(self._sums, self._kept, others, strict=True)):
            sums.add(layer, base, states, self._known)
            if place == 0 or layer in self._lens_layers:
                files.put(layer, base, states)
        if layer in self._lens_layers:
            self._halves.add(layer, base, self._known)
        if self._rows is not None:
            self._rows.put(layer, base, others)
        prompted = self._passes[0].states[: len(self._prompts.batches)]
        self._shifts.add(layer, prompted, base, self._known, [one.mean(layer) for one in self._sums])

    def advance(self, layer: int) -> None:
        """Runs all models through the block above a layer."""
        pair, looked = self._pair, layer + 1 in self._lens_layers
        with pair.block(layer):
            for one in self._passes[:2]:
                one.advance()
            counts = [_intruders(pair.base, pair.tuned, layer)] if looked else []
            for place, (model, one) in enumerate(zip(self._nulls, self._passes[2:], strict=True)):
                with model.block(layer):
                    one.advance()
                    if looked and place < RANDOM_CHANGES:
                        counts.append(_intruders(pair.base, model, layer))
        if looked:
            matrices, found = counts[0]
            self._intruders.append(BlockIntruders(layer + 1, matrices, found, max(one[1] for one in counts[1:])))

    def found(self) -> Walked:
        """At the end of all models."""
        return Walked(
            batches=self._batches,
            last=[self._of_texts(one) for one in self._passes],
            means=[one.means() for one in self._sums],
            halves=self._halves.means(),
            kept=self._kept,
            lens_layers=self._lens_layers,
            ending=self._passes[1],
            shifts=self._shifts.found,
            intruders=self._intruders,
            rows=self._rows,
        )

    def close(self) -> None:
        """Ends the passes, and removes what waits on disk."""
        for one in self._passes:
            one.close()
        for files in self._kept:
            files.clear()
        if self._rows is not None:
            self._rows.clear()

    def _of_texts(self, one: Pass) -> list[Tensor]:
        return one.states[len(one.states) - len(self._batches) :]


def _intruders(base: BlockwiseModel, other: BlockwiseModel, number: int) -> tuple[int, int]:
    """Matrices of a block that are decomposed, and the intruder dimensions of all of them."""
    others = dict(other.blocks[number].named_parameters())
    pairs = [
        (one, others[name])
        for name, one in base.blocks[number].named_parameters()
        if is_decomposed(one) and name in others and others[name].shape == one.shape
    ]
    return len(pairs), sum(intruders(one, another) for one, another in pairs)


def _lens_batch() -> Batch:
    ids = torch.ones(1, LENS_TOKENS, dtype=torch.int64)
    return Batch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool), [0])
