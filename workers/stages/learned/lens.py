"""Directions of the models' difference, read as tokens: through the end of the tuned model, as a logit lens does.

The activation difference lens (arXiv 2510.13900) looks at the mean difference over the first tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.models.known_head import KnownHead
from workers.models.layer_order import Pass
from workers.models.texts import Batch
from workers.stages.learned.differences import Differences, KeptDifferences
from workers.stages.learned.walk import LENS_TOKENS

DirectionKind = Literal["early_tokens", "all_tokens", "component"]

AMONG_FIRST = 20
"""A layer shows a token where the lens has it among so many first ones of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class AsTokens:
    """A direction as tokens. score: deviations by which the token that is read most stands out of the vocabulary."""

    score: float
    gained: list[int]
    lost: list[int]


@dataclass(frozen=True, kw_only=True)
class Read(AsTokens):
    """A mean or a component. share: of a component, of the variance at its layer."""

    kind: DirectionKind
    layer: int
    share: float | None = None


class Lens:
    """Reads directions while the tuned model's end is in memory.

    Args:
        ending: the tuned model's pass at its end; its first batch has the places. head: of the tuned model.
        shown: tokens of either sign.
    """

    def __init__(self, ending: Pass, head: PreTrainedModel, shown: int) -> None:
        self._ending = ending
        self._head = head
        self._shown = shown

    def means(self, differences: Differences, layers: Sequence[int]) -> list[Read]:
        """Of some layers, the mean over all tokens and over early ones."""
        wanted: list[tuple[DirectionKind, int]] = [
            (kind, layer) for layer in layers for kind in ("all_tokens", "early_tokens")
        ]
        rows = [(differences.every if kind == "all_tokens" else differences.early)[layer] for kind, layer in wanted]
        both = self._both(rows)
        return [self._read(kind, layer, *scores) for (kind, layer), scores in zip(wanted, both, strict=True)]

    def components(self, kept: KeptDifferences, layers: Sequence[int]) -> list[Read]:
        """Of some layers, the principal components of the differences; their sign is that of the clearer end."""
        found = []
        for layer in layers:
            components = kept.components(layer)
            both = self._both(list(components.directions))
            for (one, other), share in zip(both, components.shares, strict=True):
                scores = (one, other) if float(one.max()) >= float(other.max()) else (other, one)
                found.append(self._read("component", layer, *scores, share))
        return found

    def read(self, directions: Sequence[Tensor]) -> list[AsTokens]:
        """Directions [D] that have one sign alone."""
        return [self._tokens(*scores) for scores in self._both(list(directions))] if len(directions) else []

    def first_layers(self, kept: KeptDifferences, depth: int, places: dict[int, list[int]]) -> dict[int, int | None]:
        """From which layer on the lens shows tokens at places where they gained.

        Args:
            places: by token, rows of `kept`.

        Returns:
            By token, the first layer of those from which on each shows it; None where the last one does not.
        """
        tokens = [token for token, rows in places.items() if rows]
        first: dict[int, int | None] = dict.fromkeys(places)
        going = set(tokens)
        for layer in range(depth, -1, -1):
            if not going:
                break
            rows = kept.rows(layer)
            asked = [token for token in tokens if token in going]
            scores = self._scores([rows[places[token]].mean(0) for token in asked])
            for token, own in zip(asked, scores, strict=True):
                if float(own[token]) > 0 and int((own > own[token]).sum()) < AMONG_FIRST:
                    first[token] = layer
                else:
                    going.discard(token)
        return first

    def _read(self, kind: DirectionKind, layer: int, towards: Tensor, away: Tensor, share: float | None = None) -> Read:
        return Read(kind=kind, layer=layer, share=share, **vars(self._tokens(towards, away)))

    def _tokens(self, towards: Tensor, away: Tensor) -> AsTokens:
        gained, lost = towards.topk(self._shown), away.topk(self._shown)
        return AsTokens(score=float(gained.values[0]), gained=gained.indices.tolist(), lost=lost.indices.tolist())

    def _both(self, rows: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The scores of directions, and of their opposites: a norm or a head with a bias makes others of these."""
        towards, away = self._scores(rows), self._scores([-row for row in rows])
        return list(zip(towards, away, strict=True))

    def _scores(self, rows: list[Tensor]) -> Tensor:
        """Logits of directions [D] in deviations over the vocabulary, [N, V]; 0 of a direction that is 0."""
        parts = [self._part(torch.stack(rows[at : at + LENS_TOKENS])) for at in range(0, len(rows), LENS_TOKENS)]
        return torch.cat(parts)

    def _part(self, rows: Tensor) -> Tensor:
        states = self._ending.states[0]
        places = states.new_zeros(1, LENS_TOKENS, rows.shape[1])
        unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        places[0, : len(rows)] = unit.to(places) * rows.shape[1] ** 0.5
        ended = self._ending.ending(0, places)[0]
        batch: Batch = self._ending.batches[0]
        head, logits = KnownHead(self._head, lambda _: ended), list[Tensor]()
        with torch.inference_mode():
            for span in head.spans(batch):
                logits.append(head.logits(batch, span)[0].float().cpu())
        found = torch.cat(logits)[: len(rows)]
        spread = found.std(dim=1, keepdim=True).clamp_min(1e-12)
        scores: Tensor = (found - found.mean(dim=1, keepdim=True)) / spread
        scores *= rows.norm(dim=1, keepdim=True) > 0
        return scores
