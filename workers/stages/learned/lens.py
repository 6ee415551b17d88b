"""Directions of the models' difference, read as tokens: through the end of the tuned model, as a logit lens does.

The activation difference lens (arXiv 2510.13900) looks at the mean difference over the first tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.models.known_head import KnownHead
from workers.models.layer_order import Pass
from workers.models.texts import Batch
from workers.stages.learned.walk import LENS_TOKENS, Differences


@dataclass(frozen=True)
class Read:
    """A direction as tokens. score: deviations by which the token that is read most stands out of the vocabulary."""

    layer: int
    early: bool
    score: float
    gained: list[int]
    lost: list[int]


class Lens:
    """Reads mean differences while the tuned model's end is in memory.

    Args:
        going: the tuned model's pass at its end; its first batch has the places. head: of the tuned model.
        shown: tokens of either sign.
    """

    def __init__(self, going: Pass, head: PreTrainedModel, shown: int) -> None:
        self._going = going
        self._head = head
        self._shown = shown

    def read(self, differences: Differences, layers: Sequence[int]) -> list[Read]:
        """Of some layers, the mean over all tokens and over early ones."""
        wanted = [(layer, early) for layer in layers for early in (False, True)]
        rows = torch.stack([(differences.early if early else differences.every)[layer] for layer, early in wanted])
        found = []
        for start in range(0, len(rows), LENS_TOKENS):
            part = wanted[start : start + LENS_TOKENS]
            for (layer, early), scores in zip(part, self._scores(rows[start : start + LENS_TOKENS]), strict=True):
                gained, lost = (scores.topk(self._shown), (-scores).topk(self._shown))
                found.append(
                    Read(layer, early, float(gained.values[0]), gained.indices.tolist(), lost.indices.tolist())
                )
        return found

    def _scores(self, rows: Tensor) -> Tensor:
        """Logits of directions [N, D] in deviations over the vocabulary, [N, V]; 0 of a direction that is 0."""
        states = self._going.states[0]
        places = states.new_zeros(1, LENS_TOKENS, rows.shape[1])
        unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        places[0, : len(rows)] = unit.to(places) * rows.shape[1] ** 0.5
        ended = self._going.ending(0, places)[0]
        batch: Batch = self._going.batches[0]
        head, logits = KnownHead(self._head, lambda _: ended), list[Tensor]()
        with torch.inference_mode():
            for span in head.spans(batch):
                logits.append(head.logits(batch, span)[0].float().cpu())
        found = torch.cat(logits)[: len(rows)]
        spread = found.std(dim=1, keepdim=True).clamp_min(1e-12)
        scores: Tensor = (found - found.mean(dim=1, keepdim=True)) / spread
        scores *= rows.norm(dim=1, keepdim=True) > 0
        return scores
