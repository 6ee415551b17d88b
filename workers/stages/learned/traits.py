"""How far a fine-tune moved along directions that the request defines by two sets of prompts.

The direction at a layer is the mean of the base model's states over the tokens of one set less that over the other
(arXiv 2507.21509). Shapes: T traits, D the width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from layerdrift.contract.errors import InputError
from layerdrift.contract.request import Trait
from workers.analysis.floors import floor_of_largest
from workers.models.inliers import without_first
from workers.models.texts import Batch, batches
from workers.stages.common.moment_accumulator import BATCH_TEXTS, BATCH_TOKENS

RANDOM_DIRECTIONS = 64
"""Directions of the activations' covariance that a shift is held against."""

COVARIANCE_TOKENS = 1_000


class TraitShift(NamedTuple):
    """At a layer. shift: along the trait, as a share of the way from the one set to the other. percentile: share of the
    random directions along which the model moved less. floor: of the largest shifts at any layer of models that learned
    nothing.
    """

    layer: int
    shift: float
    percentile: float
    floor: float

    @property
    def beyond(self) -> bool:
        """Whether it is more than along any random direction, and than in any model that learned nothing."""
        return self.percentile >= 1.0 and abs(self.shift) > self.floor


@dataclass(frozen=True)
class TraitPrompts:
    """The prompts of all traits, in batches that are read together. sets: by batch, the number of each text's set:
    2 t of trait t, 2 t + 1 of its opposite.
    """

    batches: list[Batch]
    sets: list[Tensor]

    @staticmethod
    def of(traits: Sequence[Trait], tokenizer: PreTrainedTokenizerBase, length: int, causal: bool) -> TraitPrompts:
        """In tokens, up to `length` of each; of causal models without the first one, an attention sink."""
        texts = [text for trait in traits for side in (trait.prompts, trait.opposite) for text in side]
        numbers = [
            2 * place + opposite
            for place, trait in enumerate(traits)
            for opposite, side in enumerate((trait.prompts, trait.opposite))
            for _ in side
        ]
        read = list(batches(tokenizer, texts, BATCH_TEXTS, length, BATCH_TOKENS)) if texts else []
        read = [batch._replace(real=without_first(batch.real, causal)) for batch in read]
        counted = Counter(
            numbers[text]
            for batch in read
            for text, tokens in zip(batch.indices, batch.real.sum(1).tolist(), strict=True)
            for _ in range(tokens)
        )
        for place, trait in enumerate(traits):
            for side, number in (("prompts", 2 * place), ("opposite", 2 * place + 1)):
                if not counted[number]:
                    raise InputError.at(
                        f"/analysis/learned/traits/{place}/{side}",
                        f"the {side} of trait {trait.name!r} have one token each, and the first one never counts; use "
                        "longer texts",
                    )
        return TraitPrompts(read, [torch.tensor([numbers[text] for text in batch.indices]) for batch in read])

    @property
    def count(self) -> int:
        """T."""
        return 1 + max((int(one.max()) for one in self.sets), default=-1) // 2

    def directions(self, states: Sequence[Tensor]) -> Tensor:
        """From the opposite to the trait, [T, D], of the base model's states of all batches at a layer."""
        sums = torch.zeros(2 * self.count, states[0].shape[2], dtype=torch.float64)
        counts = torch.zeros(2 * self.count, dtype=torch.float64)
        for batch, sets, state in zip(self.batches, self.sets, states, strict=True):
            real = batch.real.double()
            sums.index_add_(0, sets, (state.cpu().double() * real[:, :, None]).sum(1))
            counts.index_add_(0, sets, real.sum(1))
        means = sums / counts.clamp_min(1)[:, None]
        return means[0::2] - means[1::2]


class TraitShifts:
    """Shifts layer by layer. seed: of the random directions. alike: as of `floor_of_largest`."""

    def __init__(self, prompts: TraitPrompts, seed: int, alike: int) -> None:
        self._prompts = prompts
        self._seed, self._alike = seed, alike
        self._found: list[list[TraitShift]] = [[] for _ in range(prompts.count)]
        self._nulls: list[list[list[float]]] = [[] for _ in range(prompts.count)]

    def add(
        self,
        layer: int,
        prompted: Sequence[Tensor],
        base: Sequence[Tensor],
        known: Sequence[Batch],
        means: Sequence[Tensor],
    ) -> None:
        """Takes a layer.

        Args:
            prompted: the base model's states of the prompts. base: of the analysed texts. known: which of their tokens
            count. means: mean differences [D] of the tuned model and of those that learned nothing.
        """
        if not self._found:
            return
        moved, *others = (mean.double() for mean in means)
        random = self._random(layer, base, known)
        along = (random @ moved).abs() / random.norm(dim=1).clamp_min(1e-12)
        for found, known_nulls, direction in zip(
            self._found, self._nulls, self._prompts.directions(prompted), strict=True
        ):
            squared = float(direction @ direction)
            if squared == 0:
                found.append(TraitShift(layer, 0.0, 0.0, 0.0))
                continue
            shift, *nulls = (float(one @ direction) / squared for one in (moved, *others))
            less = float((along < abs(shift) * squared**0.5).double().mean())
            found.append(TraitShift(layer, shift, less, 0.0))
            known_nulls.append([abs(one) for one in nulls])

    @property
    def found(self) -> list[list[TraitShift]]:
        """By trait and layer. A trait has one floor for all layers, since the farthest of them is what is told."""
        told = []
        for found, nulls in zip(self._found, self._nulls, strict=True):
            floor = floor_of_largest([max(of_model) for of_model in zip(*nulls, strict=True)], self._alike)
            told.append([one._replace(floor=floor) for one in found])
        return told

    def _random(self, layer: int, base: Sequence[Tensor], known: Sequence[Batch]) -> Tensor:
        """Directions with the covariance of the states of the first tokens, [RANDOM_DIRECTIONS, D]."""
        rows, left = list[Tensor](), COVARIANCE_TOKENS
        for state, batch in zip(base, known, strict=True):
            if left <= 0:
                break
            rows.append(state.cpu()[batch.real][:left].double())
            left -= len(rows[-1])
        every = torch.cat(rows)
        generator = torch.Generator().manual_seed(self._seed * 100_003 + layer)
        drawn = torch.randn(RANDOM_DIRECTIONS, len(every), generator=generator, dtype=torch.float64)
        return drawn @ (every - every.mean(0))
