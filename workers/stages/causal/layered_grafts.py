"""Grafts in a pair that runs block by block: states of the base model go on in the tuned one, and the other way round.

The base model's layers 0 to k in the tuned model are the base model's states at layer k in the tuned model's blocks
above. So both models are read once, and all grafts go through a block while it is in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workers.models.layer_order import Pass
from workers.models.loading import Headed
from workers.models.texts import Batch
from workers.stages.causal.graft_scores import GRAFT_TEXTS, GRAFT_TOKENS, GraftScores
from workers.stages.common.evaluation import EvalSet, Evaluator, Scores
from workers.stages.common.layered_pair import LayeredPair
from workers.stages.common.progress import OnProgress
from workers.stages.compare.outputs import known_targets

PATCHED_BYTES = 2 << 30
"""Memory for the states of all grafts after the last block; fewer tokens are asked about where it is too small."""


def layered_graft_scores(
    pair: LayeredPair, tuned: Headed | None, eval_set: EvalSet, on_progress: OnProgress
) -> GraftScores:
    """What the tuned model's head makes of every graft.

    Args:
        tuned: the tuned model's head alone; None: how far the last states of a body move is measured.

    Raises:
        NotBlockwise: the blocks hand on more than their states.
    """
    return _Grafts(pair, tuned, _asked(pair, eval_set)).scores(on_progress)


def _asked(pair: LayeredPair, eval_set: EvalSet) -> EvalSet:
    """As many of the first texts as fit; of a language model, which answers at every token, at most GRAFT_TOKENS."""
    tokens = PATCHED_BYTES // (2 * pair.base.depth * pair.width * pair.base.dtype.itemsize)
    if eval_set.kind == "causal_lm":
        tokens = min(tokens, GRAFT_TOKENS)
    texts = [row.content for row in eval_set.rows[:GRAFT_TEXTS]]
    count = max(1, len(eval_set.tokenization.within(texts, tokens)[0]))
    return replace(eval_set, rows=eval_set.rows[:count])


class _Grafts:
    """Both models at the same texts, and the grafts on their way."""

    def __init__(self, pair: LayeredPair, tuned: Headed | None, asked: EvalSet) -> None:
        self._pair = pair
        self._head = tuned.model if tuned is not None else None
        self._asked = asked
        self._batches: list[Batch] = list(asked.batches())
        targets = known_targets(asked, tuned.model) if tuned is not None and tuned.kind == "classifier" else None
        self._evaluator = Evaluator(asked, tuned is not None, targets)
        reader = pair.tokenization.states
        self._base, self._tuned = (Pass(side, self._batches, reader) for side in (pair.base, pair.tuned))

    def scores(self, on_progress: OnProgress) -> GraftScores:
        depth = self._pair.base.depth
        checked = min(range(len(self._batches)), key=lambda number: self._batches[number].input_ids.numel())
        try:
            for one in (self._base, self._tuned):
                one.start()
                one.patched[checked]["own"] = one.states[checked]
            for layer in range(depth):
                self._through_block(layer)
                on_progress((layer + 1) / depth / 2, f"grafts through block {layer + 1} of {depth}")
            for one in (self._base, self._tuned):
                one.require_patchable(checked, "own")
            whole = self._score(self._tuned.states)
            prefixes, blocks = list[Scores](), list[Scores]()
            for layer in range(depth):
                prefixes.append(self._grafted(("prefix", layer), whole))
                blocks.append(self._grafted(("block", layer + 1), whole))
                on_progress((depth + layer + 1) / depth / 2, f"base layers 0 to {layer} in the tuned model")
            prefixes.append(self._told(self._base.states, whole))
            return GraftScores(self._asked, self._evaluator.measure, whole, prefixes, [prefixes[0], *blocks])
        finally:
            self._base.close()
            self._tuned.close()

    def _through_block(self, layer: int) -> None:
        """Puts in what starts at this layer, and runs all that is on its way through the block above it."""
        base, tuned = self._base, self._tuned
        for number in range(len(self._batches)):
            tuned.patched[number]["prefix", layer] = base.states[number]
            base.patched[number]["block"] = tuned.states[number]
        with self._pair.block(layer):
            base.advance()
            tuned.advance()
        for own, other in zip(base.patched, tuned.patched, strict=True):
            other["block", layer + 1] = own.pop("block")

    def _grafted(self, key: tuple[str, int], whole: Scores) -> Scores:
        ended = (self._tuned.ending(number, one.pop(key)) for number, one in enumerate(self._tuned.patched))
        return self._told(list(ended), whole)

    def _told(self, last: Sequence[Tensor], whole: Scores) -> Scores:
        """The scores of last states; those of the tuned model itself where these are its own, bit by bit."""
        same = all(torch.equal(one, own) for one, own in zip(last, self._tuned.states, strict=True))
        return whole if same else self._score(last)

    def _score(self, last: Sequence[Tensor]) -> Scores:
        if self._head is None:
            return self._evaluator.change(zip(self._batches, last, strict=True))
        return self._evaluator.scores(self._head, self._asked.with_last(self._head, self._batches, last))
