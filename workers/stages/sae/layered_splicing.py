"""Splices in a model that runs block by block: edited states go through the blocks beside its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.models.blockwise import BlockwiseModel
from workers.models.layer_order import Pass, Patched
from workers.models.states import Edit
from workers.models.texts import Batch
from workers.stages.common.evaluation import EvalSet, Scores, by_text, kl_bits
from workers.stages.sae.splicing import ABLATION_TEXTS, ABLATION_TOKENS, Judge, LayerEdits, LayerScores

Block = Callable[[int], AbstractContextManager[object]]

ENDED = 0.8
"""Of the progress: the share of the blocks, before the head is asked."""


class LayeredLoss:
    """The loss of a model of which one block at a time is in memory, and its head: as `Loss`.

    Args:
        targets: as for `Judge`. head: the model's head, on known states. block: gives one of its blocks the weights.
    """

    def __init__(
        self, asked: EvalSet, targets: Tensor | None, side: BlockwiseModel, head: PreTrainedModel, block: Block
    ) -> None:
        self._asked = asked
        self._judge = Judge(asked, targets)
        self.by_divergence = self._judge.by_divergence
        self._near = asked.first(ABLATION_TEXTS, ABLATION_TOKENS)
        self._side = side
        self._head = head
        self._block = block

    def edited(self, layers: list[LayerEdits], on_progress: Callable[[float], None]) -> Iterator[LayerScores]:
        """As `Loss.edited`; all layers' edits are on their way together.

        Raises:
            NotBlockwise: the blocks hand on more than their states.
        """
        batches = list(self._asked.batches())
        near = list(self._near.batches()) if any(one.without for one in layers) else []
        going = Pass(self._side, [*batches, *near], self._asked.tokenization.states)
        try:
            last = self._through(going, layers, len(batches), on_progress)
            losses = self._losses(batches, last[: len(batches)])
            moved = self._moved(near, last[len(batches) :])
        finally:
            going.close()
        for one in layers:
            found = [moved[one.layer, number] for number in range(len(one.without))]
            yield LayerScores(losses["own"], losses[one.layer, "rebuilt"], losses[one.layer, "flat"], found)
        on_progress(1.0)

    def _through(
        self, going: Pass, layers: list[LayerEdits], spliced: int, on_progress: Callable[[float], None]
    ) -> list[Patched]:
        """By batch the last states of the model: its own, and what becomes of each edit.

        Args:
            spliced: so many of the first batches are rebuilt and flattened; latents are taken out of the others.
        """
        edits, depth = {one.layer: one for one in layers}, self._side.depth
        ended: list[Patched] = [{} for _ in going.patched]
        going.start()
        checked = min(range(len(going.states)), key=lambda number: going.states[number].numel())
        going.patched[checked]["check"] = going.states[checked]
        for layer in range(depth + 1):
            into = going.patched if layer < depth else ended
            if layer in edits:
                for number, patched in enumerate(into):
                    patched.update(self._edits(edits[layer], going, number, number < spliced))
            if layer < depth:
                with self._block(layer):
                    going.advance()
                on_progress(ENDED * (layer + 1) / depth)
        going.require_patchable(checked, "check")
        del going.patched[checked]["check"]
        for number, (patched, found) in enumerate(zip(going.patched, ended, strict=True)):
            found["own"] = going.states[number]
            for key in list(patched):
                found[key] = going.ending(number, patched.pop(key))
        return ended

    def _edits(self, edits: LayerEdits, going: Pass, number: int, spliced: bool) -> Patched:
        batch, state = going.batches[number], going.states[number]
        chosen = self._asked.tokenization.known(batch).real.to(state.device)
        named: dict[object, Edit] = {"rebuilt": edits.rebuilt, "flat": edits.flat}
        wanted = named if spliced else dict(enumerate(edits.without))
        return {(edits.layer, name): _edited(state, edit, chosen) for name, edit in wanted.items()}

    def _losses(self, batches: list[Batch], last: list[Patched]) -> dict[object, Scores]:
        texts = len(self._asked.rows)
        found: dict[object, Scores] = {}
        for batch, states in zip(batches, last, strict=True):
            asked = {key: self._asked.with_last(self._head, [batch], [state]) for key, state in states.items()}
            for span in asked["own"].spans(batch):
                own = asked["own"].predict(self._head, batch, span=span)
                for key, one in asked.items():
                    answers = own if key == "own" else one.predict(self._head, batch, span=span)
                    found[key] = found.get(key, Scores.none(texts)).plus(self._judge.loss(answers, own))
        return found

    def _moved(self, batches: list[Batch], last: list[Patched]) -> dict[object, Scores]:
        """By edit, how far the answers move from the model's own."""
        texts = len(self._near.rows)
        found: dict[object, Scores] = {}
        for batch, states in zip(batches, last, strict=True):
            asked = {key: self._near.with_last(self._head, [batch], [state]) for key, state in states.items()}
            own = asked.pop("own")
            for span in own.spans(batch):
                answers = own.predict(self._head, batch, span=span).log_probs
                for key, one in asked.items():
                    moved = one.predict(self._head, batch, span=span)
                    part = by_text(kl_bits(answers, moved.log_probs) * math.log(2), moved.texts, texts)
                    found[key] = found.get(key, Scores.none(texts)).plus(part)
        return found


def _edited(state: Tensor, edit: Edit, chosen: Tensor) -> Tensor:
    with torch.inference_mode():
        found = state.clone()
        found[chosen] = edit(found[chosen].float().cpu()).to(found)
    return found
