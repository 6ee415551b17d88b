"""The last layer of the compared texts, kept so that heads can be asked without running the blocks below them again."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from workers.models.prefix import PrefixCache
from workers.models.structure import block_list
from workers.models.texts import Batch
from workers.stages.common.moment_accumulator import TokenizationSpec

KEPT_BYTES = 256 << 20
"""Memory for each model's; texts beyond it run through all blocks."""


class LastStates:
    """What the last block put out for each text, special tokens included."""

    def __init__(self, texts: int) -> None:
        self._states: list[Tensor | None] = [None] * texts
        self._left = KEPT_BYTES

    def add(self, batch: Batch, state: Tensor) -> None:
        """Keeps the rows of a batch, [B, T, D], while there is room."""
        lengths = batch.attention_mask.sum(1).tolist()
        for row, (text, length) in enumerate(zip(batch.indices, lengths, strict=True)):
            own = state[row, :length].clone()
            if own.nbytes > self._left:
                return
            self._left -= own.nbytes
            self._states[text] = own

    def cache(self, model: PreTrainedModel, tokenization: TokenizationSpec) -> PrefixCache | None:
        """For a model with a head on these states. It is checked on its first use, and given up where answers differ.

        None: the model lays its states out otherwise, or padding changes them.
        """
        if tokenization.states.order != (0, 1, 2) or tokenization.states.reads_padding:
            return None
        cache = PrefixCache(model, len(block_list(model.base_model)), len(self._states))
        cache.fill(self._states)
        return cache
