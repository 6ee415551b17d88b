"""How the tuned model answers with parts of the base model in it, and what that costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from workers.results.effects import GraftInfo, LayerGraft
from workers.results.measured import Measured
from workers.stages.common.evaluation import EvalSet, Measure, Scores
from workers.stages.common.intervals import ratio
from workers.stages.compare.outputs import gained, measured

GRAFT_TEXTS, GRAFT_TOKENS = 500, 2_500
"""Texts that every graft is judged on, one evaluation for each layer, twice; and their tokens, as `EvalSet.first`."""


@dataclass(frozen=True)
class GraftScores:
    """Of the tuned model on the same texts: as it is, and by layer k with the base's layers 0..k, or block k alone.

    blocks: the first one is that of layer 0, the embeddings. A graft that changes nothing has the very scores of
    `whole`.
    """

    asked: EvalSet
    measure: Measure
    whole: Scores
    prefixes: list[Scores]
    blocks: list[Scores]

    def costs(self) -> tuple[list[LayerGraft], GraftInfo]:
        """By layer, with intervals.

        Raises:
            ValueError: the texts have nothing that the tuned model can be asked about.
        """
        asked, measure = self.asked, self.measure
        ungrafted = measured(asked, self.whole, measure)
        found = [
            LayerGraft(
                prefix=measured(asked, prefix, measure),
                block=measured(asked, block, measure),
                prefix_cost=_cost(asked, self.whole, prefix, measure),
            )
            for prefix, block in zip(self.prefixes, self.blocks, strict=True)
        ]
        if ungrafted.value is None:
            raise ValueError("the tuned model could not be evaluated")
        return found, GraftInfo(measure=measure, ungrafted=ungrafted.value, examples=len(asked.rows))


def _cost(eval_set: EvalSet, whole: Scores, grafted: Scores, measure: Measure) -> Measured:
    """What a graft costs on the same texts: share of right answers lost, relative rise of perplexity, else itself."""
    if grafted is whole:
        return Measured(value=0.0, low=0.0, high=0.0)
    if measure == "accuracy":
        return gained(eval_set, grafted, whole)
    if measure == "perplexity":
        return ratio(*eval_set.grouped(grafted.less(whole)), math.expm1)
    return measured(eval_set, grafted, measure)
