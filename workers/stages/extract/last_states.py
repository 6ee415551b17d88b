"""The last layer of the compared texts, kept so that heads can be asked without running the blocks below them again."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from workers.models.prefix import PrefixCache
from workers.models.structure import block_list
from workers.models.texts import Batch
from workers.stages.common.moment_accumulator import TokenizationSpec

KEPT_BYTES = 256 << 20
"""Memory for each model's; texts beyond it run through all blocks, or are on disk."""


class LastStates:
    """What the last block put out for each text, special tokens included.

    Args:
        folder: where texts go that do not fit into memory; None: these are not kept.
    """

    def __init__(self, texts: int, folder: Path | None = None) -> None:
        self._states: list[Tensor | None] = [None] * texts
        self._files: dict[int, Path] = {}
        self._left = KEPT_BYTES
        self._folder = folder

    def add(self, batch: Batch, state: Tensor) -> None:
        """Keeps the rows of a batch, [B, T, D], while there is room."""
        lengths = batch.attention_mask.sum(1).tolist()
        beyond: dict[str, Tensor] = {}
        for row, (text, length) in enumerate(zip(batch.indices, lengths, strict=True)):
            own = state[row, :length].clone()
            if own.nbytes <= self._left:
                self._left -= own.nbytes
                self._states[text] = own
            elif self._folder is None:
                return
            else:
                beyond[str(text)] = own
        if beyond and self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{batch.indices[0]}.safetensors"
            save_file(beyond, path)
            self._files |= {int(text): path for text in beyond}

    def state(self, text: int) -> Tensor:
        """Of one text, [T, D]; ValueError where it was not kept."""
        found = self._states[text]
        if found is not None:
            return found
        if text not in self._files:
            raise ValueError(f"the last states of text {text} were not kept")
        with safe_open(self._files[text], framework="pt") as file:
            stored: Tensor = file.get_tensor(str(text))
        return stored

    @property
    def dtype(self) -> torch.dtype:
        """Of the states; ValueError where there are none."""
        found = next((one for one in self._states if one is not None), None)
        if found is None:
            raise ValueError("no states were kept")
        return found.dtype

    def cache(self, model: PreTrainedModel, tokenization: TokenizationSpec) -> PrefixCache | None:
        """For a model with a head on these states. It is checked on its first use, and given up where answers differ.

        None: the model lays its states out otherwise, or padding changes them.
        """
        if tokenization.states.order != (0, 1, 2) or tokenization.states.reads_padding:
            return None
        cache = PrefixCache(model, len(block_list(model.base_model)), len(self._states))
        cache.fill(self._states)
        return cache
