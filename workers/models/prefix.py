"""The first blocks of a model run once for each row: their states are kept, and later passes begin above them.

Exact (to rounding) where these blocks are frozen and without dropout. Blocks that pass anything but their states on to
the next one are not skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.models.device import FATAL
from workers.models.structure import block_list
from workers.models.texts import Batch, run

CACHE_BYTES = 1 << 30
"""Memory that kept states may take; rows beyond it run through all blocks every time."""

_AGREEMENT = 1e-3
"""Relative difference of the answers with and without the cache, on its first use; beyond it the cache is given up."""


UNLIKE = (RuntimeError, LookupError, AttributeError, TypeError, ValueError)
"""What is raised where blocks pass on more than their states, or states of another shape."""


class _Skipped(nn.Module):
    """Stands where a block stood and answers with given states in the form of the block's own answer."""

    def __init__(self, block: nn.Module, is_tuple: bool) -> None:
        super().__init__()
        self.states: Tensor | None = None
        self._is_tuple = is_tuple
        self._block = (block,)  # in a tuple, so that its weights are not this module's

    def __getattr__(self, name: str) -> Any:
        """What a model reads off its blocks, such as the kind of their attention, stays readable."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"][0], name)

    def forward(self, hidden_states: Tensor, *_args: object, **_options: object) -> object:
        found = hidden_states if self.states is None else self.states
        return (found,) if self._is_tuple else found


class PrefixCache:
    """States after the first `prefix` blocks, by row.

    Args:
        model: with a body whose blocks can be found.
        prefix: blocks that are skipped once a row's states are known; at least 1.
        rows: how many there are.
    """

    def __init__(self, model: PreTrainedModel, prefix: int, rows: int) -> None:
        self.used = False
        self._model = model
        self._prefix = prefix
        self._states: list[Tensor | None] = [None] * rows
        self._bytes = 0
        self._is_tuple: bool | None = None
        self._possible = True

    def fill(self, states: list[Tensor | None]) -> None:
        """Takes states that are known already, by row: [T, D] each."""
        self._states = list(states)
        self._bytes = sum(state.nbytes for state in states if state is not None)

    def logits(self, batch: Batch, rows: list[int]) -> Tensor:
        """The model's logits on a batch of these rows."""
        known = [self._states[row] for row in rows]
        if not self._possible or self._is_tuple is None or any(states is None for states in known):
            return self._whole(batch, rows)
        padded = self._padded([states for states in known if states is not None], batch)
        if not self.used and not self._agrees(batch, padded):
            self._possible = False
            return self._whole(batch, rows)
        self.used = True
        with self._skipping(padded):
            found: Tensor = run(self._model, batch).logits
        return found

    def _whole(self, batch: Batch, rows: list[int]) -> Tensor:
        block = block_list(self._model.base_model)[self._prefix - 1]
        with _watched(block) as answers:
            found: Tensor = run(self._model, batch).logits
        if self._possible and self._bytes < CACHE_BYTES:
            self._keep(answers[0], batch, rows)
        return found

    def _keep(self, answer: object, batch: Batch, rows: list[int]) -> None:
        self._is_tuple = isinstance(answer, tuple)
        states = answer[0] if isinstance(answer, tuple) else answer
        others = answer[1:] if isinstance(answer, tuple) else ()
        if not isinstance(states, Tensor) or any(other is not None for other in others):
            self._possible = False
            return
        lengths = batch.attention_mask.sum(1).tolist()
        for row, length, kept in zip(rows, lengths, states.detach(), strict=True):
            if self._states[row] is None:
                own = kept[:length].clone()
                self._states[row] = own
                self._bytes += own.nbytes

    def _padded(self, states: list[Tensor], batch: Batch) -> Tensor:
        padded = states[0].new_zeros(*batch.input_ids.shape, states[0].shape[1])
        for row, kept in enumerate(states):
            padded[row, : len(kept)] = kept
        return padded

    def _agrees(self, batch: Batch, padded: Tensor) -> bool:
        """Whether the cache changes the answers; dropout above the prefix is off for this look."""
        modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()
        try:
            with torch.no_grad():
                whole = _at_tokens(run(self._model, batch).logits, batch)
                with self._skipping(padded):
                    short = _at_tokens(run(self._model, batch).logits, batch)
        except FATAL:
            raise
        except UNLIKE:
            return False
        finally:
            for module, training in modes:
                module.training = training
        tolerance = _AGREEMENT if padded.dtype == torch.float32 else 50 * _AGREEMENT
        return float((whole - short).norm()) <= tolerance * float(whole.norm())

    @contextmanager
    def _skipping(self, states: Tensor) -> Iterator[None]:
        blocks = block_list(self._model.base_model)
        kept = [blocks[index] for index in range(self._prefix)]
        try:
            for index in range(self._prefix):
                blocks[index] = _Skipped(kept[index], bool(self._is_tuple))
            blocks[self._prefix - 1].states = states
            yield
        finally:
            for index, block in enumerate(kept):
                blocks[index] = block


def _at_tokens(logits: Tensor, batch: Batch) -> Tensor:
    """The logits of texts [B, C] as they are; of those of tokens [B, T, C] the ones that are no padding."""
    found = logits.float()
    return found[batch.attention_mask.to(found.device).bool()] if found.dim() == 3 else found


@contextmanager
def _watched(block: nn.Module) -> Iterator[list[object]]:
    """What a block answers while the body runs."""
    answers: list[object] = []
    handle = block.register_forward_hook(lambda _module, _inputs, answer: answers.append(answer))
    try:
        yield answers
    finally:
        handle.remove()
