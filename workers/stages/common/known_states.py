"""States of a model at every layer of some texts, so that a change at one layer runs the blocks above it alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel

from workers.models.loading import body_of
from workers.models.prefix import PrefixCache
from workers.models.structure import shares_blocks
from workers.stages.common.evaluation import EvalSet

KEPT_BYTES = 1 << 30
"""Memory for the states of one model."""


@dataclass(frozen=True)
class KnownStates:
    """by_layer: of layers 0 to L - 1, of each text [T, D]."""

    by_layer: list[list[Tensor]]

    @staticmethod
    def of(model: PreTrainedModel, asked: EvalSet) -> KnownStates | None:
        """Of a model with a head on some texts; None where they do not fit, or where padding changes them."""
        reader, body, texts = asked.tokenization.states, body_of(model), len(asked.rows)
        if asked.kind == "masked_lm" or reader.order != (0, 1, 2) or reader.reads_padding:
            return None
        if body is not model.base_model or shares_blocks(body):  # a cache of states skips blocks of a plain list alone
            return None
        found, left = [list[Tensor]() for _ in range(reader.layers - 1)], KEPT_BYTES
        order: list[int] = []
        for batch in asked.batches():
            lengths = batch.attention_mask.sum(1).tolist()
            for kept, state in zip(found, reader.states(body, batch), strict=False):
                kept += [state[row, :length].clone() for row, length in enumerate(lengths)]
                left -= sum(one.nbytes for one in kept[-len(lengths) :])
            order += batch.indices
            if left < 0:
                return None
        places = [order.index(text) for text in range(texts)]
        return KnownStates([[kept[place] for place in places] for kept in found])

    def above(self, layer: int, model: PreTrainedModel, asked: EvalSet) -> EvalSet:
        """The texts, which `model` reads from this layer on; its blocks above that and its head may be any.

        Where skipping the blocks below changes the answers, which is tried once, it reads them from the start.
        """
        if not 0 < layer < len(self.by_layer):
            return asked
        cache = PrefixCache(model, layer, len(asked.rows))
        cache.fill(list(self.by_layer[layer]))
        return replace(asked, known={**asked.known, id(model): cache})


def above(known: KnownStates | None, layer: int, model: PreTrainedModel, asked: EvalSet) -> EvalSet:
    """As `KnownStates.above`; the same texts where nothing is known."""
    return asked if known is None else known.above(layer, model, asked)
